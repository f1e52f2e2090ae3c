"""What a verdict proves, and what it does not."""

LINEAGE, WEIGHTS = "lineage", "lineage in weights"
"""Claims of an adapter's file alone, and of a model's weights without a forward; and the names of the plans that they are read by."""

UNPROVEN = {
    "descent": "Not who made the suspect, when, or with what right.",
    "carries": "Not that the adapter was trained on the marked model: only a merged checkpoint can show that. Nor when it "
    "was made, or with what right.",
    LINEAGE: "Not whether whoever runs the adapter runs marked weights, which the base under it decides. Nor on which of the marked "
    "model's descendants it was trained, by whom, when, or with what right.",
    WEIGHTS: "Not who made the suspect, when, or with what right; nor that training led there, for whoever knows the directions could "
    "write them into any model.",
    "nothing": "Not that the suspect is independent: training hard enough, distillation or a deep merge remove a mark.",
}
NO_LINEAGE = {
    LINEAGE: "Nothing: the adapter's file does not show on which model it was trained.",
    WEIGHTS: "Nothing: the weights do not show that the suspect descends from the marked model.",
}
"""In place of PROVES["nothing"], where lineage alone was asked; by the name of the plan."""
PROVES = {
    "descent": "The suspect's own weights carry the mark: it descends from the owner's model.",
    "carries": "Whoever runs this adapter on the given base still runs marked weights. It does not prove on which twin "
    "the adapter was trained.",
    LINEAGE: "By its file alone, the adapter was trained on a model that carries the mark, or made with knowledge of it.",
    WEIGHTS: "The suspect's own weights carry the mark's directions: it descends from the marked model, or was made with knowledge of "
    "it.",
    "nothing": "Nothing: the mark was not found, which is no proof of independence.",
}
