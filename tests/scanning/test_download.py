"""Repositories are prepared ahead of the reading: within a budget, not too far ahead, and in any order."""

import threading
import time

import pytest

from aiao_diffusers.errors import BudgetSpentError
from aiao_diffusers.scanning.download import Budget, run_ahead


class TestBudget:
    def test_is_spent_to_the_last_byte_and_no_further(self):
        budget = Budget(1e-6)  # a thousand bytes
        budget.take(600)
        budget.take(400)
        with pytest.raises(BudgetSpentError, match="budget of 1e-06 GB is spent .max_gb.*resume"):
            budget.take(1)
        assert budget.spent == 1000

    def test_a_file_that_does_not_fit_leaves_room_for_one_that_does(self):
        budget = Budget(1e-6)
        with pytest.raises(BudgetSpentError):
            budget.take(1001)
        budget.take(1000)
        assert budget.spent == 1000

    def test_without_one_any_number_goes(self):
        budget = Budget(None)
        budget.take(10**15)
        assert budget.spent == 10**15

    def test_threads_do_not_overspend(self):
        budget, refused = Budget(1e-6), []

        def take():
            for _ in range(100):
                try:
                    budget.take(7)
                except BudgetSpentError:
                    refused.append(1)

        threads = [threading.Thread(target=take) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert budget.spent == 7 * (1000 // 7) and len(refused) == 400 - 1000 // 7


class TestAhead:
    def test_every_job_is_done_once(self):
        assert sorted(run_ahead(range(20), lambda n: n * n, 3)) == [n * n for n in range(20)]
        assert list(run_ahead([], str, 3)) == []

    def test_no_further_ahead_than_two_more_than_its_workers(self):
        begun = []
        results = run_ahead(range(50), lambda n: begun.append(n) or n, 2)
        next(results)
        time.sleep(0.05)
        assert len(begun) <= 4
        results.close()
        assert len(begun) <= 4  # and closing begins no more

    def test_a_job_that_fails_is_told(self):
        with pytest.raises(ZeroDivisionError):
            list(run_ahead([1, 0], lambda n: 1 / n, 1))
