import { compareManifests, type Manifest, manifestHash } from '../../../crypto/channel/manifest.ts'
import { loadSodium } from '../../../crypto/sodium.ts'
import { assert, codeOf, suite, thrown } from '../../support/suite.ts'

const test = suite('crypto/manifest')
await loadSodium()

const stream = (index: number, records: number, fill = index) => ({ index, records, digest: new Uint8Array(32).fill(fill) })
const manifest: Manifest = { streams: [stream(1, 10), stream(2, 20), stream(3, 30)] }
const hex = (bytes: Uint8Array) => Buffer.from(bytes).toString('hex')

test('equal manifests compare equal in any order and have one hash', () => {
  const turned = { streams: [...manifest.streams].reverse() }
  compareManifests(manifest, turned)
  assert.is(hex(manifestHash(manifest)), hex(manifestHash(turned)))
  assert.is(manifestHash(manifest).length, 32)
})

test('a manifest that differs is MANIFEST_MISMATCH and names the stream', async () => {
  const [one, two, three] = manifest.streams as [ReturnType<typeof stream>, ReturnType<typeof stream>, ReturnType<typeof stream>]
  const others: [Manifest, RegExp][] = [
    [{ streams: [one, two] }, /stream 3 was sent but not received/],
    [{ streams: [one, two, three, stream(4, 1)] }, /stream 4 was received but not sent/],
    [{ streams: [one, stream(2, 19, 2), three] }, /stream 2: 20 records were sent, 19 were received/],
    [{ streams: [one, two, stream(3, 30, 9)] }, /stream 3: the received data differs/],
  ]
  for (const [other, message] of others) {
    assert.is(await codeOf(() => compareManifests(manifest, other)), 'MANIFEST_MISMATCH')
    assert.match(String(await thrown(() => compareManifests(manifest, other))), message)
    assert.is.not(hex(manifestHash(manifest)), hex(manifestHash(other)))
  }
})

test.run()
