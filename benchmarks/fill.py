"""How full best_fit packs real documents: docs_zh into blocks of 2,048. The last line printed is the result, as JSON.

No Ray: the encoder and the packer as the pack stage uses them, on all documents in order, an end token after each.
"""

import json

import numpy as np

from benchmarks.corpus import REAL, Corpus, parser, texts_of

BLOCK_TOKENS = 2048
GOAL = 0.99


def main() -> None:
    from zhlm.blocks.packing import Packer
    from zhlm.pack.tasks import with_ends
    from zhlm.tokenizer.encode import make_encoder

    given = parser(__doc__).parse_args()
    tokenizer_json = (Corpus(given.folder, given.spliced_share).base() / "tokenizer.json").read_text(encoding="utf-8")
    texts = list(texts_of(REAL / "docs_zh.jsonl"))
    ids, lengths = with_ends(*make_encoder("gigatoken", tokenizer_json).encode_batch(texts), None, 0)
    packer = Packer("best_fit", BLOCK_TOKENS, np.uint16)
    packed = [*packer.add(ids, lengths), packer.finish()]
    ends = [e for blocks in packed for e in blocks.ends]
    pieces, tokens = sum(map(len, ends)), sum(int(e[-1]) for e in ends)
    uncut = int(np.ceil(lengths / BLOCK_TOKENS).sum())  # a piece per document that fits; whole blocks and a tail of a longer one
    fill = tokens / (len(ends) * BLOCK_TOKENS)
    facts = {"documents": len(texts), "longer_than_a_block": int((lengths > BLOCK_TOKENS).sum()), "blocks": len(ends), "tokens": tokens}
    lost, cut = int(lengths.sum()) - tokens, pieces - uncut
    met = fill >= GOAL and not lost and not cut
    result = {"bench": "fill", "fill": round(fill, 5), "goal": GOAL, "tokens_lost": lost, "documents_cut": cut, "met": met}
    print(json.dumps(result | facts))


if __name__ == "__main__":
    main()
