import { ContentTable, HASH_WORDS, NO_PAGE } from '../../../edge-node/pages/table.ts'
import { assert, suite } from '../../support/suite.ts'
import { seeded } from './support.ts'

const test = suite('pages: table')
const hashOf = (content: number): Uint32Array => Uint32Array.of(content * 0x9e3779b1, content, content * 7, 1)

test('a page sent as content is the holder of that content', () => {
  const table = new ContentTable(8)
  assert.is(table.holderOf(hashOf(5)), NO_PAGE)
  table.sentContent(3, hashOf(5))
  assert.is(table.holderOf(hashOf(5)), 3)
  assert.ok(table.holds(3, hashOf(5)))
  assert.not(table.holds(3, hashOf(6)))
})

test('a page sent as a reference has the content and is no holder', () => {
  const table = new ContentTable(8)
  table.sentContent(3, hashOf(5))
  table.sentReference(4, hashOf(5))
  assert.is(table.holderOf(hashOf(5)), 3)
  assert.ok(table.holds(4, hashOf(5)))
  table.forget(3)
  assert.is(table.holderOf(hashOf(5)), NO_PAGE)
})

test('a later holder of the same content takes the place of the earlier one, and forgetting the earlier one leaves it', () => {
  const table = new ContentTable(8)
  table.sentContent(3, hashOf(5))
  table.sentContent(6, hashOf(5))
  assert.is(table.holderOf(hashOf(5)), 6)
  table.forget(3)
  assert.is(table.holderOf(hashOf(5)), 6)
})

test('hashes that share their home slot are told apart, and deletion in the middle of a run loses nothing', () => {
  const table = new ContentTable(6)
  const near = (i: number) => Uint32Array.of(0xffff_ffff, i, 0, 0)
  for (let i = 0; i < 6; i++) table.sentContent(i, near(i))
  table.forget(2)
  table.forget(0)
  for (const i of [1, 3, 4, 5]) assert.is(table.holderOf(near(i)), i)
  assert.is(table.holderOf(near(2)), NO_PAGE)
  assert.is(table.holderOf(near(0)), NO_PAGE)
})

test('it agrees with a map over random use, full to the last page', () => {
  for (let seed = 1; seed <= 40; seed++) {
    const random = seeded(seed)
    const pages = 1 + Math.floor(random() * 40)
    const contents = 1 + Math.floor(random() * 60)
    const table = new ContentTable(pages)
    const holders = new Map<number, number>()
    const held: (number | undefined)[] = new Array(pages).fill(undefined)
    // Homes close together make long runs.
    const hash = (content: number) => {
      const out = hashOf(content)
      if (seed % 2 === 0) out[0] = (content % 3) * 0x1000
      return out
    }
    for (let step = 0; step < 400; step++) {
      const page = Math.floor(random() * pages)
      const content = Math.floor(random() * contents)
      const before = held[page]
      if (before !== undefined) {
        table.forget(page)
        if (holders.get(before) === page) holders.delete(before)
        held[page] = undefined
      }
      if (random() < 0.8) {
        table.sentContent(page, hash(content))
        holders.set(content, page)
        held[page] = content
      }
      if (step % 20 > 0) continue
      for (let each = 0; each < contents; each++)
        assert.is(table.holderOf(hash(each)), holders.get(each) ?? NO_PAGE, `seed ${seed}, step ${step}`)
    }
  }
})

test('a hash has four words', () => assert.is(HASH_WORDS * 4, 16))

test.run()
