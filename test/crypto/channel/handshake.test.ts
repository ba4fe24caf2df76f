import { readFileSync } from 'node:fs'
import {
  finish,
  type HandshakeState,
  readMessage,
  startHandshake,
  transportKeys,
  writeMessage,
  XWING_CIPHERTEXT_BYTES,
  XWING_PUBLIC_BYTES,
} from '../../../crypto/channel/handshake.ts'
import { hmac, openTransport, sealTransport } from '../../../crypto/channel/noise.ts'
import { encodePrologue } from '../../../crypto/channel/prologue.ts'
import { generateSiteKeys, type SiteKeys } from '../../../crypto/identity.ts'
import { loadSodium, sodium } from '../../../crypto/sodium.ts'
import { assert, codeOf, suite } from '../../support/suite.ts'

const test = suite('crypto/handshake')
await loadSodium()

const hex = (bytes: Uint8Array) => Buffer.from(bytes).toString('hex')
const fromHex = (text: string) => new Uint8Array(Buffer.from(text, 'hex'))
const utf8 = (text: string) => new TextEncoder().encode(text)
const empty = new Uint8Array(0)
const source = generateSiteKeys()
const target = generateSiteKeys()
const prologue = utf8('prologue')

type Change = { hybrid?: boolean; local?: SiteKeys; remotePublic?: Uint8Array; prologue?: Uint8Array }
const initiate = (hybrid: boolean, change: Change = {}) =>
  startHandshake({ role: 'initiator', hybrid, local: source, remotePublic: target.boxPublic, prologue, ...change })
const respond = (hybrid: boolean, change: Change = {}) =>
  startHandshake({ role: 'responder', hybrid, local: target, remotePublic: source.boxPublic, prologue, ...change })

test('the published vector of Noise_KK_25519_ChaChaPoly_BLAKE2b holds', () => {
  const vector = JSON.parse(readFileSync(new URL('../../vectors/noise-kk-cacophony.json', import.meta.url), 'utf8'))
  const side = (role: 'initiator' | 'responder', key: 'init' | 'resp') => {
    const boxSecret = fromHex(vector[`${key}_static`])
    return startHandshake({
      role,
      hybrid: false,
      local: { boxSecret, boxPublic: sodium().crypto_scalarmult_base(boxSecret) },
      remotePublic: fromHex(vector[`${key}_remote_static`]),
      prologue: fromHex(vector[`${key}_prologue`]),
      random: () => fromHex(vector[`${key}_ephemeral`]),
    })
  }
  const payload = (i: number) => fromHex(vector.messages[i].payload)
  const first = writeMessage(side('initiator', 'init'), payload(0))
  assert.is(hex(first.message), vector.messages[0].ciphertext)
  const read = readMessage(side('responder', 'resp'), first.message)
  assert.equal(read.payload, payload(0))
  const second = writeMessage(read.state, payload(1))
  assert.is(hex(second.message), vector.messages[1].ciphertext)
  const last = readMessage(first.state, second.message)
  assert.equal(last.payload, payload(1))
  assert.is(hex(last.state.symmetric.h), vector.handshake_hash)
  assert.is(hex(second.state.symmetric.h), vector.handshake_hash)
  const keys = transportKeys(last.state)
  assert.equal(keys, transportKeys(second.state))
  for (let i = 2; i < vector.messages.length; i++) {
    const [key, counter] = [keys[i % 2]!, (i - 2) >> 1]
    assert.is(hex(sealTransport(key, counter, empty, payload(i))), vector.messages[i].ciphertext)
    assert.equal(openTransport(key, counter, empty, fromHex(vector.messages[i].ciphertext)), payload(i))
  }
})

test('HMAC-BLAKE2b is RFC 2104 over BLAKE2b-512 with a block of 128 bytes', async () => {
  const { createHmac } = await import('node:crypto')
  for (const length of [0, 1, 64, 128, 129, 300]) {
    const key = new Uint8Array(length).fill(7)
    assert.is(hex(hmac(key, utf8('a'), utf8('b'))), createHmac('blake2b512', key).update('ab').digest('hex'))
  }
})

test('X-Wing is that of draft-connolly-cfrg-xwing-kem (appendix C, first vector)', () => {
  const pair = sodium().crypto_kem_xwing_seed_keypair(fromHex('7f9c2ba4e88f827d616045507605853ed73b8093f6efbc88eb1a6eacfa66ef26'))
  const seed =
    '3cb1eea988004b93103cfb0aeefd2a686e01fa4a58e8a3639ca8a1e3f9ae57e235b8cc873c23dc62b8d260169afa2f75ab916a58d974918835d25e6a435085b2'
  const sent = sodium().crypto_kem_xwing_enc_deterministic(pair.publicKey, fromHex(seed))
  assert.is(hex(sent.sharedSecret), 'd2df0522128f09dd8e2c92b1e905c793d8f57a54c3da25861f10bf4ca613e384')
  assert.is(hex(sodium().crypto_kem_xwing_dec(sent.ciphertext, pair.privateKey)), hex(sent.sharedSecret))
  assert.is(pair.publicKey.length, XWING_PUBLIC_BYTES)
  assert.is(sent.ciphertext.length, XWING_CIPHERTEXT_BYTES)
})

for (const hybrid of [false, true]) {
  const named = (title: string) => `${title} (${hybrid ? 'hybrid' : 'classical'})`

  test(named('both ends come to the same keys and hash, and other ends to others'), () => {
    const run = () => {
      const first = writeMessage(initiate(hybrid), utf8('one'))
      const read = readMessage(respond(hybrid), first.message)
      assert.is(hex(read.payload), hex(utf8('one')))
      const second = writeMessage(read.state, utf8('two'))
      const last = readMessage(first.state, second.message)
      assert.is(hex(last.payload), hex(utf8('two')))
      const [ours, theirs] = [finish(last.state), finish(second.state)]
      assert.is(hex(ours.rootKey), hex(theirs.rootKey))
      assert.is(hex(ours.handshakeHash), hex(theirs.handshakeHash))
      assert.is(ours.rootKey.length, 32)
      assert.is(ours.handshakeHash.length, 64)
      assert.throws(() => finish(last.state), /already finished/)
      return hex(ours.rootKey)
    }
    assert.is.not(run(), run())
  })

  test(named('a message altered, cut or lengthened anywhere is HANDSHAKE_FAILED'), async () => {
    const first = writeMessage(initiate(hybrid), utf8('p'))
    const second = writeMessage(readMessage(respond(hybrid), first.message).state, utf8('q'))
    for (const [message, reader] of [
      [first.message, respond(hybrid)],
      [second.message, first.state],
    ] as [Uint8Array, HandshakeState][]) {
      for (let at = 0; at < message.length; at++) {
        const altered = message.slice()
        altered[at]! ^= 1 << (at & 7)
        // X25519 ignores the top bit of a public key, but the hash of the handshake does not.
        assert.is(await codeOf(() => readMessage(reader, altered)), 'HANDSHAKE_FAILED', `byte ${at}`)
      }
      for (let cut = 0; cut < message.length; cut++)
        assert.is(await codeOf(() => readMessage(reader, message.subarray(0, cut))), 'HANDSHAKE_FAILED')
      assert.is(await codeOf(() => readMessage(reader, Uint8Array.from([...message, 0]))), 'HANDSHAKE_FAILED')
      assert.is(await codeOf(() => readMessage(reader, new Uint8Array(70_000))), 'HANDSHAKE_FAILED')
      // The state was not touched by all that.
      readMessage(reader, message)
    }
  })

  test(named('another prologue, key or variant is HANDSHAKE_FAILED'), async () => {
    const first = writeMessage(initiate(hybrid), empty)
    const stranger = generateSiteKeys()
    const others = [
      respond(hybrid, { prologue: utf8('prologuE') }),
      respond(hybrid, { prologue: empty }),
      respond(hybrid, { remotePublic: stranger.boxPublic }),
      respond(hybrid, { local: stranger }),
      respond(!hybrid),
    ]
    for (const other of others) assert.is(await codeOf(() => readMessage(other, first.message)), 'HANDSHAKE_FAILED')
    const impostor = writeMessage(initiate(hybrid, { local: { ...stranger, boxPublic: source.boxPublic } }), empty)
    assert.is(await codeOf(() => readMessage(respond(hybrid), impostor.message)), 'HANDSHAKE_FAILED')
  })

  test(named('an answer to another message 1, or a reflected one, is HANDSHAKE_FAILED'), async () => {
    const [one, two] = [writeMessage(initiate(hybrid), empty), writeMessage(initiate(hybrid), empty)]
    const answer = writeMessage(readMessage(respond(hybrid), two.message).state, empty)
    assert.is(await codeOf(() => readMessage(one.state, answer.message)), 'HANDSHAKE_FAILED')
    assert.is(await codeOf(() => readMessage(one.state, one.message)), 'HANDSHAKE_FAILED')
  })

  test(named('a public key of low order is HANDSHAKE_FAILED'), async () => {
    const first = writeMessage(initiate(hybrid), empty).message
    for (const point of [new Uint8Array(32), Uint8Array.from([1, ...new Uint8Array(31)])]) {
      const altered = first.slice()
      altered.set(point)
      assert.is(await codeOf(() => readMessage(respond(hybrid), altered)), 'HANDSHAKE_FAILED')
      assert.is(await codeOf(() => writeMessage(initiate(hybrid, { remotePublic: point }), empty)), 'HANDSHAKE_FAILED')
    }
  })

  test(named('a message out of turn is our own bug, not a failed handshake'), () => {
    assert.throws(() => writeMessage(respond(hybrid), empty), /initiator/)
    assert.throws(() => readMessage(initiate(hybrid), empty), /initiator/)
    const first = writeMessage(initiate(hybrid), empty)
    assert.throws(() => writeMessage(first.state, empty), /responder/)
    assert.throws(() => finish(first.state), /not finished/)
    const second = writeMessage(readMessage(respond(hybrid), first.message).state, empty)
    assert.throws(() => writeMessage(second.state, empty), /two messages/)
  })
}

test('every fact of the prologue changes its bytes, and no two facts can be moved between fields', () => {
  const facts = {
    version: 1,
    migrationId: '0'.repeat(32),
    vm: 'web-1',
    epoch: 1,
    attempt: 1,
    sourceCertificate: utf8('s'),
    targetCertificate: utf8('tt'),
    planHash: new Uint8Array(32),
    compression: 'zstd',
  }
  const all = [
    facts,
    { ...facts, version: 2 },
    { ...facts, migrationId: 'f'.repeat(32) },
    { ...facts, vm: 'web-2' },
    { ...facts, epoch: 2 },
    { ...facts, attempt: 2 },
    { ...facts, sourceCertificate: utf8('st'), targetCertificate: utf8('t') },
    { ...facts, sourceCertificate: utf8('tt'), targetCertificate: utf8('s') },
    { ...facts, planHash: new Uint8Array(32).fill(1) },
    { ...facts, compression: 'off' },
  ].map(encodePrologue)
  assert.is(new Set(all.map(hex)).size, all.length)
  assert.throws(() => encodePrologue({ ...facts, vm: 'Web' }), TypeError)
})

test.run()
