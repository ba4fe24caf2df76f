import { duplexPair } from 'node:stream'
import { setTimeout as wait } from 'node:timers/promises'
import { ByteRing, RING_BYTES, VmConsole } from '../../../edge-node/vm/console.ts'
import { assert, codeOf, suite } from '../../support/suite.ts'
import { heard } from './echo-guest.ts'

const test = suite('edge-node/vm/console')

test('a ring keeps the last bytes, whatever the sizes of the writes', () => {
  for (const capacity of [1, 2, 5, 8])
    for (const sizes of [[1, 1, 1], [3, 4, 5], [8], [20], [0, 7, 0, 9], [5, 5, 5, 5], [2, 6, 8, 1]]) {
      const ring = new ByteRing(capacity)
      const all: number[] = []
      for (const size of sizes) {
        const bytes = Array.from({ length: size }, (_, index) => (all.length + index) % 256)
        all.push(...bytes)
        ring.write(Uint8Array.from(bytes))
        assert.equal([...ring.read()], all.slice(-capacity))
      }
    }
})

test('followers get the replay and all that comes after it', async () => {
  const [ours, guest] = duplexPair()
  const console = new VmConsole(ours, { seed: Buffer.from('before ') })
  guest.write('early ')
  await wait(10)
  const [late, fresh] = [console.follow(), console.follow({ replay: false })]
  guest.write('then end')
  assert.is(await heard(late, 'end'), 'before early then end')
  assert.is(await heard(fresh, 'end'), 'then end')
  assert.is(console.replay().toString(), 'before early then end')
})

test('a follower that does not read is cut off with a notice; the guest and the others go on', async () => {
  const [ours, guest] = duplexPair()
  const console = new VmConsole(ours)
  const slow = console.follow()
  const quick = console.follow()
  const count = (async () => {
    let bytes = 0
    for await (const chunk of quick) bytes += chunk.length
    return bytes
  })()
  for (let n = 0; n < 64; n++) {
    guest.write(Buffer.alloc(16 * 1024, 65))
    await wait(1)
  }
  assert.is(slow.dropped, true)
  assert.match(await heard(slow, 'cut off'), 'too slow')
  assert.is(console.replay().length, RING_BYTES)
  guest.end()
  assert.is(await count, 64 * 16 * 1024)
  assert.is(quick.dropped, false)
})

test('when the guest goes, followers end and writes are refused', async () => {
  const [ours, guest] = duplexPair()
  const console = new VmConsole(ours)
  const follower = console.follow()
  guest.write('bye')
  await wait(5)
  guest.end()
  assert.is(await heard(follower, 'never', 5_000), 'bye')
  assert.is(console.ended, true)
  assert.is(await codeOf(() => console.write(Buffer.from('x'))), 'QEMU_EXITED')
  assert.is(await heard(console.follow(), 'never', 5_000), 'bye')
})

test('writes to a guest that does not read are bounded', async () => {
  const [ours, guest] = duplexPair()
  const console = new VmConsole(ours)
  const first = console.write(Buffer.alloc(40 * 1024)).catch(() => {})
  assert.is(await codeOf(() => console.write(Buffer.alloc(40 * 1024))), 'LIMIT_EXCEEDED')
  guest.resume()
  await first
  await console.write(Buffer.alloc(40 * 1024))
  console.close()
})

test('the number of followers is bounded, and a closed one makes room', async () => {
  const [ours] = duplexPair()
  const console = new VmConsole(ours)
  const followers = Array.from({ length: 16 }, () => console.follow())
  assert.is(await codeOf(() => console.follow()), 'LIMIT_EXCEEDED')
  followers[3]?.close()
  console.follow()
  console.close()
})

test.run()
