import { applyPieces, createPatch, makePatch, PATCH_BYTES_MAX, readPieces } from '../../../edge-node/pages/patch.ts'
import { SentPages } from '../../../edge-node/pages/sent.ts'
import { VarintReader } from '../../../edge-node/pages/varint.ts'
import { PAGE_BYTES } from '../../../wire/types.ts'
import { assert, codeOf, suite } from '../../support/suite.ts'
import { seeded } from './support.ts'

const test = suite('pages: patch')
const patch = createPatch()

/** The page that a target makes of `base`; undefined where no patch is worth it. */
function patched(base: Uint8Array, page: Uint8Array, times = 1): Uint8Array | undefined {
  if (!makePatch(base, page, patch)) return undefined
  const pieces = patch.pieces.slice(0, patch.pieceBytes)
  const reader = new VarintReader(pieces, 0)
  assert.is(readPieces(reader), patch.literalBytes)
  assert.is(reader.at, pieces.length)
  assert.ok(patch.pieceBytes + patch.literalBytes <= PATCH_BYTES_MAX)
  const held = base.slice()
  for (let i = 0; i < times; i++) assert.is(applyPieces(new VarintReader(pieces, 0), patch.literals, 0, held), patch.literalBytes)
  return held
}

test('whatever has changed in a page, the patch makes the one of the other; applied twice it gives the same', () => {
  const random = seeded(7)
  const below = (n: number) => Math.floor(random() * n)
  let worth = 0
  for (let round = 0; round < 3000; round++) {
    const base = Uint8Array.from({ length: PAGE_BYTES }, () => below(4))
    const page = base.slice()
    for (let change = below(2 + (round % 40)); change >= 0; change--) {
      const at = below(PAGE_BYTES)
      page.fill(below(256), at, at + 1 + below(round % 3 === 0 ? 500 : 8))
    }
    const made = patched(base, page, 1 + (round % 2))
    if (!made) continue
    worth++
    assert.is(Buffer.compare(made, page), 0, `round ${round}`)
  }
  assert.ok(worth > 2000)
})

test('first and last byte, every second byte, and bytes that are close', () => {
  for (const places of [[0], [4095], [0, 4095], [0, 2, 4, 6], [0, 4, 9, 15], [3, 8], Array.from({ length: 500 }, (_, i) => 8 * i)]) {
    const base = new Uint8Array(PAGE_BYTES)
    const page = base.slice()
    for (const at of places) page[at] = 9
    assert.equal(patched(base, page), page, String(places.slice(0, 4)))
  }
})

test('pages that are equal, or have little in common, are no patch', () => {
  const base = new Uint8Array(PAGE_BYTES)
  assert.is(patched(base, base), undefined)
  assert.is(patched(base, base.slice().fill(1)), undefined)
  const dense = base.slice()
  for (let at = 0; at < PAGE_BYTES; at += 5) dense[at] = 1
  assert.ok(patched(base, dense))
  assert.is(patched(base, base.slice().fill(1, 0, 3100)), undefined)
})

test('cut short anywhere, pieces are FRAME_MALFORMED', async () => {
  const base = new Uint8Array(PAGE_BYTES)
  const page = base.slice()
  for (const at of [5, 200, 3000]) page.fill(7, at, at + 70)
  assert.ok(makePatch(base, page, patch))
  const pieces = patch.pieces.slice(0, patch.pieceBytes)
  for (let length = 0; length < pieces.length; length++)
    assert.is(await codeOf(() => readPieces(new VarintReader(pieces.subarray(0, length), 0))), 'FRAME_MALFORMED')
})

const content = (n: number) => new Uint8Array(PAGE_BYTES).fill(n)

test('what is kept of a page is what was last said of it, within the budget', () => {
  const saidAt = new Uint32Array(100)
  const sent = new SentPages(100, 10 * PAGE_BYTES)
  for (let page = 0; page < 20; page++) {
    sent.keep(page, content(page), 0, saidAt)
    saidAt[page] = 1 + page
  }
  const kept = () => Array.from({ length: 100 }, (_, page) => page).filter(page => sent.last(page))
  assert.equal(kept(), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
  assert.is(sent.bytes, 10 * PAGE_BYTES)
  sent.keep(3, content(99), 4, saidAt)
  assert.equal(sent.last(3), content(99))
  sent.drop(4)
  assert.is(sent.last(4), undefined)
  sent.keep(50, content(50), 0, saidAt)
  assert.equal(sent.last(50), content(50))
  assert.is(sent.bytes, 10 * PAGE_BYTES)
})

test('a set that is rewritten round after round and too large keeps its part; a set that was left gives way', () => {
  const saidAt = new Uint32Array(1000)
  const sent = new SentPages(1000, 50 * PAGE_BYTES)
  let now = 0
  let hits = 0
  const round = (from: number, to: number) => {
    hits = 0
    for (let page = from; page < to; page++) {
      if (sent.last(page)) hits++
      sent.keep(page, content(page), saidAt[page]!, saidAt)
      saidAt[page] = ++now
    }
  }
  for (let i = 0; i < 5; i++) round(0, 100)
  assert.ok(hits >= 45, `${hits} of 100 with room for 50`)
  for (let i = 0; i < 8; i++) round(500, 540)
  assert.ok(hits >= 36, `${hits} of 40 after eight rounds`)
})

test('without a budget nothing is kept', () => {
  const sent = new SentPages(10, 0)
  sent.keep(1, content(1), 0, new Uint32Array(10))
  sent.drop(1)
  assert.is(sent.last(1), undefined)
  assert.is(sent.bytes, 0)
})

test.run()
