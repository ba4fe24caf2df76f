// crypto/channel/handshake.ts: messages that a relay alters, and messages of a peer with the right keys but a malicious
// ephemeral or X-Wing key.
import { concatBytes } from '../../crypto/bytes.ts'
import {
  finish,
  type HandshakeState,
  readMessage,
  startHandshake,
  writeMessage,
  XWING_CIPHERTEXT_BYTES,
  XWING_PUBLIC_BYTES,
} from '../../crypto/channel/handshake.ts'
import { dh, encryptAndHash, mixHash, mixKey } from '../../crypto/channel/noise.ts'
import { loadSodium, type SiteKeys } from '../../crypto/identity.ts'
import { sodium } from '../../crypto/sodium.ts'
import { fixedKeys } from '../keys.ts'
import { Choices, demand, sameBytes, type Target } from '../target.ts'

type Role = 'initiator' | 'responder'
let initiator: SiteKeys
let responder: SiteKeys
const messages: Record<'classical' | 'hybrid', [Uint8Array, Uint8Array]> = {
  classical: [new Uint8Array(), new Uint8Array()],
  hybrid: [new Uint8Array(), new Uint8Array()],
}
const EMPTY = new Uint8Array(0)

function begin(role: Role, hybrid: boolean): HandshakeState {
  const [local, remote] = role === 'initiator' ? [initiator, responder] : [responder, initiator]
  let drawn = role === 'initiator' ? 0x20 : 0x30
  return startHandshake({
    role,
    hybrid,
    local,
    remotePublic: remote.boxPublic,
    prologue: Buffer.from('prologue'),
    random: count => new Uint8Array(count).fill(drawn++),
  })
}
const named = (hybrid: boolean) => messages[hybrid ? 'hybrid' : 'classical']

/** The responder's side. */
function respond(hybrid: boolean, message: Uint8Array): void {
  const { state } = readMessage(begin('responder', hybrid), message)
  const second = writeMessage(state, EMPTY)
  const { rootKey } = finish(second.state)
  demand(rootKey.length === 32, 'no key')
}

/** The initiator's side. */
function conclude(hybrid: boolean, message: Uint8Array): void {
  const { state } = readMessage(writeMessage(begin('initiator', hybrid), EMPTY).state, message)
  demand(finish(state).rootKey.length === 32, 'no key')
}

/** Message 1 of a hybrid handshake with the initiator's keys and any X-Wing key. */
function lyingFirst(kemPublic: Uint8Array, payload: Uint8Array): Uint8Array {
  const secret = new Uint8Array(32).fill(0x20)
  const ephemeral = sodium().crypto_scalarmult_base(secret)
  let symmetric = mixHash(begin('initiator', true).symmetric, ephemeral)
  symmetric = mixKey(symmetric, dh(secret, responder.boxPublic))
  const kem = encryptAndHash(symmetric, kemPublic)
  symmetric = mixKey(kem.state, dh(initiator.boxSecret, responder.boxPublic))
  return concatBytes(ephemeral, kem.ciphertext, encryptAndHash(symmetric, payload).ciphertext)
}

/**
 * Message 2 of a hybrid handshake with the responder's keys and any X-Wing ciphertext: the payload cannot be opened.
 */
function lyingSecond(ciphertext: Uint8Array): Uint8Array {
  const { state } = readMessage(begin('responder', true), named(true)[0])
  const secret = new Uint8Array(32).fill(0x30)
  const ephemeral = sodium().crypto_scalarmult_base(secret)
  const symmetric = mixKey(mixHash(state.symmetric, ephemeral), dh(secret, state.remoteEphemeral!))
  return concatBytes(ephemeral, encryptAndHash(symmetric, ciphertext).ciphertext, new Uint8Array(16))
}

const padded = (bytes: Uint8Array, length: number): Uint8Array => {
  const out = new Uint8Array(length)
  out.set(bytes.subarray(0, length))
  return out
}

export const handshake: Target = {
  name: 'handshake',
  what: 'crypto/channel/handshake.ts: altered messages, and keys chosen to break us',
  codes: ['HANDSHAKE_FAILED'],
  testRuns: 500,
  bytesMax: 4096,
  words: [new Uint8Array(32), Uint8Array.of(1, ...new Uint8Array(31)), new Uint8Array(32).fill(255)],
  async setup() {
    await loadSodium()
    initiator = fixedKeys(1)
    responder = fixedKeys(2)
    for (const hybrid of [false, true]) {
      const first = writeMessage(begin('initiator', hybrid), EMPTY)
      const second = writeMessage(readMessage(begin('responder', hybrid), first.message).state, EMPTY)
      messages[hybrid ? 'hybrid' : 'classical'] = [first.message, second.message]
    }
  },
  seeds: () => [
    ...[0, 1, 2, 3].map(how => concatBytes(Uint8Array.of(how), named(how % 2 === 1)[how >> 1]!)),
    concatBytes(Uint8Array.of(4), sodium().crypto_kem_xwing_seed_keypair(new Uint8Array(32)).publicKey),
    Uint8Array.of(5, 1),
  ],
  hostile: () => ({
    'the longest message': concatBytes(Uint8Array.of(1), named(true)[0], new Uint8Array(64_000)),
    'one that is longer': new Uint8Array(70_000).fill(1),
  }),
  run(input) {
    const choices = new Choices(input)
    const how = choices.number(1) % 6
    const bytes = choices.rest()
    if (how === 4) return respond(true, lyingFirst(padded(bytes, XWING_PUBLIC_BYTES), bytes.subarray(XWING_PUBLIC_BYTES, 4000)))
    if (how === 5) return conclude(true, lyingSecond(padded(bytes, XWING_CIPHERTEXT_BYTES)))
    const hybrid = how % 2 === 1
    const isSecond = how >= 2
    ;(isSecond ? conclude : respond)(hybrid, bytes)
    demand(sameBytes(bytes, named(hybrid)[isSecond ? 1 : 0]), 'an altered message passes')
  },
}
