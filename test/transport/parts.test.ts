import { createGuard } from '../../transport/guard.ts'
import { createInbox } from '../../transport/inbox.ts'
import { createIdentity, parseRemote } from '../../transport/quic-native.ts'
import { GodwitError } from '../../wire/errors.ts'
import { assert, codeOf, suite, thrown } from '../support/suite.ts'

const test = suite('transport parts', { ms: 5_000 })

test('an inbox gives each item once, in order, to those who waited first, and refuses what does not fit', async () => {
  const inbox = createInbox<number>(2)
  const early = [inbox.next(), inbox.next()]
  assert.equal([1, 2, 3, 4, 5].map(inbox.push), [true, true, true, true, false])
  assert.equal(await Promise.all([...early, inbox.next(), inbox.next()]), [1, 2, 3, 4])
  const waiting = inbox.next()
  inbox.push(6)
  inbox.push(7)
  assert.is(await waiting, 6)
  assert.equal(inbox.end(), [7])
  assert.is(await inbox.next(), null)
  assert.is(inbox.push(8), false)
})

test('a guard ends waits whose operation never settles, and keeps its first error', async () => {
  const guard = createGuard()
  assert.is(await guard.run(Promise.resolve(1)), 1)
  const stuck = codeOf(() => guard.run(new Promise(() => {})))
  guard.fail(new GodwitError('STREAM_RESET'))
  guard.fail(new GodwitError('CONNECTION_LOST'))
  assert.is(await stuck, 'STREAM_RESET')
  assert.is(await codeOf(() => guard.run(Promise.reject(new Error('later')))), 'STREAM_RESET')
})

test("a peer's address gives host, port and Ed25519 key", async () => {
  // The peer id of libp2p's specification (peer-ids/peer-ids.md) for this public key.
  const { host, port, publicKey } = parseRemote('/ip4/127.0.0.1/udp/4001/quic-v1/p2p/12D3KooWD3eckifWpRn9wQpMG9R9hX3sD158z7EqHWmweQAJU5SA')
  assert.equal([host, port, publicKey.length], ['127.0.0.1', 4001, 32])
  for (const wrong of [
    '',
    '/ip4/127.0.0.1/udp/4001/quic-v1',
    '/ip4/127.0.0.1/tcp/4001/quic-v1/p2p/12D3KooWD3eckifWpRn9wQpMG9R9hX3sD158z7EqHWmweQAJU5SA',
    '/ip4/127.0.0.1/udp/4001/quic-v1/p2p/12D3KooWD3eckifWpRn9wQpMG9R9hX3sD158z7EqHWmweQAJU5S0',
    '/ip4/127.0.0.1/udp/4001/quic-v1/p2p/QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N',
  ]) {
    assert.instance(await thrown(() => parseRemote(wrong)), Error, wrong)
  }
})

test('an identity is a libp2p private key protobuf of Ed25519', () => {
  const { proto, publicKey } = createIdentity()
  assert.is(proto.length, 68)
  assert.equal([...proto.subarray(0, 4)], [8, 1, 18, 64])
  assert.equal(Buffer.from(proto.subarray(36)), Buffer.from(publicKey))
})

test.run()
