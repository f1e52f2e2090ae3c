"""What a verdict proves, and what it does not."""

UNPROVEN = {
    "descent": "Not who made the suspect, when, or with what right. The p-value supposes that the key was fixed before the "
    "suspect was seen; a commitment dated before that is what shows it.",
    "carries": "Not that the adapter was trained on the marked model: only a merged checkpoint can show that. Nor when it "
    "was made, or with what right; and the key must have been fixed before, which a dated commitment shows.",
    "nothing": "Not that the suspect is independent: training hard enough, distillation or a deep merge remove a mark.",
}
PROVES = {
    "descent": "The suspect's own weights carry the mark: it descends from the owner's model.",
    "carries": "Whoever runs this adapter on the given base still runs marked weights. It does not prove on which twin "
    "the adapter was trained.",
    "nothing": "Nothing: the mark was not found, which is no proof of independence.",
}
