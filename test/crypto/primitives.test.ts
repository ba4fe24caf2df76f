// The native and the WebAssembly build give the same bytes: what one seals the other opens, both ways.
import { createPageHasher } from '../../crypto/channel/page-hash.ts'
import { createOpener, createSealer } from '../../crypto/channel/record.ts'
import { loadSodium, native, portable, randomBytes, sodium } from '../../crypto/sodium.ts'
import { assert, suite } from '../support/suite.ts'

const test = suite('crypto/primitives')
await loadSodium()

const fast = native()
const skip = fast ? false : 'sodium-native does not load here'
const same = (a: Uint8Array, b: Uint8Array) => Buffer.compare(a, b) === 0
const key = randomBytes(32)
const context = { migrationId: 'ab'.repeat(16), epoch: 1, index: 5, direction: 'target-to-source' } as const

test(
  'what one build seals the other opens, over rekeying and the final record',
  () => {
    for (const [one, other] of [
      [fast!, portable()],
      [portable(), fast!],
    ] as const) {
      const sealer = createSealer({ key, context, primitives: one, rekeyBytes: 50_000 })
      const opener = createOpener({ key, context, primitives: other, header: sealer.header })
      for (const size of [0, 1, 1020, 5000, 65532, 65532, 300]) {
        const data = randomBytes(size)
        assert.ok(same(opener.open(sealer.seal(data)).data, data))
      }
      assert.ok(opener.open(sealer.seal(randomBytes(1), { final: true })).final)
      opener.end()
      assert.ok(same(sealer.digest(), opener.digest()))
    }
  },
  { skip },
)

test(
  'both builds seal to the same bytes',
  () => {
    const header = randomBytes(24)
    const [a, b] = [fast!, portable()].map(primitives => createSealer({ key, context, primitives, header, rekeyBytes: 2048 }))
    for (const size of [0, 100, 5000, 65532]) assert.ok(same(a!.seal(new Uint8Array(size)), b!.seal(new Uint8Array(size))))
  },
  { skip },
)

test(
  'both builds hash a page alike',
  () => {
    const [a, b] = [createPageHasher(key, fast!), createPageHasher(key, portable())]
    for (const size of [4096, 4095, 1, 0]) {
      const page = randomBytes(size)
      const [x, y] = [new Uint8Array(16), new Uint8Array(16)]
      a.hash(page, x)
      b.hash(page, y)
      assert.ok(same(x, y))
    }
  },
  { skip },
)

test('a page hash is keyed BLAKE2b-128, on a view as on a whole buffer', () => {
  const hasher = createPageHasher(key)
  const memory = randomBytes(3 * 4096)
  const table = new Uint8Array(48)
  hasher.hash(memory.subarray(4096, 8192), table.subarray(16, 32))
  assert.ok(same(table.subarray(16, 32), sodium().crypto_generichash(16, memory.slice(4096, 8192), key)))
  assert.ok(same(table.subarray(0, 16), new Uint8Array(16)))
  assert.ok(same(table.subarray(32), new Uint8Array(16)))
  const other = new Uint8Array(16)
  createPageHasher(randomBytes(32)).hash(memory.subarray(4096, 8192), other)
  assert.not(same(other, table.subarray(16, 32)))
  hasher.wipe()
  assert.throws(() => hasher.hash(memory.subarray(0, 4096), other), /wiped/)
})

for (const primitives of [portable(), ...(fast ? [fast] : [])]) {
  test(`hashing a page allocates nothing (${primitives.name})`, () => {
    const hasher = createPageHasher(key, primitives)
    const [page, out] = [new Uint8Array(4096), new Uint8Array(16)]
    const rounds = 5000
    const grown = () => {
      const before = process.memoryUsage()
      for (let i = 0; i < rounds; i++) hasher.hash(page, out)
      const after = process.memoryUsage()
      return Math.max(after.heapUsed - before.heapUsed, after.arrayBuffers - before.arrayBuffers)
    }
    // The least of several runs: the first ones pay for the compiler's own data.
    const least = Math.min(...Array.from({ length: 8 }, grown))
    // One small object per page would be 16 bytes or more.
    assert.ok(least < rounds * 8, `${least} bytes for ${rounds} pages`)
  })

  test(`a wiped secret stream is refused, not reused (${primitives.name})`, () => {
    const stream = primitives.secretStream(key, randomBytes(24))
    stream.wipe()
    stream.wipe()
    assert.throws(() => stream.push(new Uint8Array(18), new Uint8Array(1), new Uint8Array(0), 0), /wiped/)
    assert.throws(() => stream.pull(new Uint8Array(1), new Uint8Array(18), new Uint8Array(0)), /wiped/)
  })
}

test.run()
