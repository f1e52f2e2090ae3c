"""What a verdict proves, and what it does not."""

UNPROVEN = {
    "descent": "Not who made the suspect, when, or with what right.",
    "carries": "Not that the adapter was trained on the marked model: only a merged checkpoint can show that. Nor when it "
    "was made, or with what right.",
    "nothing": "Not that the suspect is independent: training hard enough, distillation or a deep merge remove a mark.",
}
PROVES = {
    "descent": "The suspect's own weights carry the mark: it descends from the owner's model.",
    "carries": "Whoever runs this adapter on the given base still runs marked weights. It does not prove on which twin "
    "the adapter was trained.",
    "nothing": "Nothing: the mark was not found, which is no proof of independence.",
}
