// The end-to-end handshake: Noise KK (both sides know the other's static key from its certificate), one round trip,
// forward secret; and its hybrid form, which also transfers an X-Wing key (X25519 + ML-KEM-768), so that a later
// quantum computer cannot decrypt a recording of today. Pure: state and message in, state and message out. Always
// holds: whatever a peer sends, the outcome is the same keys at both ends or HANDSHAKE_FAILED; a prologue that differs
// in one bit is HANDSHAKE_FAILED; no guest data is sent before message 2 has been read.
import { GodwitError } from '../../wire/errors.ts'
import { concatBytes } from '../bytes.ts'
import { hashParts } from '../hash.ts'
import { randomBytes, sodium, wipe } from '../sodium.ts'
import {
  DH_BYTES,
  decryptAndHash,
  dh,
  encryptAndHash,
  initialize,
  MAC_BYTES,
  mixHash,
  mixKey,
  NoiseFailure,
  type SymmetricState,
  split,
} from './noise.ts'

/**
 * The second name follows the Noise HFS extension: e1 after the first DH of message 1, ekem1 after ee of message 2;
 * "25519+XWing" is ours.
 */
const PROTOCOL_NAMES = {
  classical: 'Noise_KK_25519_ChaChaPoly_BLAKE2b',
  hybrid: 'Noise_KKhfs_25519+XWing_ChaChaPoly_BLAKE2b',
} as const

type Token = 'e' | 'es' | 'ss' | 'ee' | 'se' | 'e1' | 'ekem1'
const PATTERNS: Record<keyof typeof PROTOCOL_NAMES, readonly [readonly Token[], readonly Token[]]> = {
  classical: [
    ['e', 'es', 'ss'],
    ['e', 'ee', 'se'],
  ],
  hybrid: [
    ['e', 'es', 'e1', 'ss'],
    ['e', 'ee', 'ekem1', 'se'],
  ],
}

/** X-Wing (draft-connolly-cfrg-xwing-kem), bytes. */
export const XWING_PUBLIC_BYTES = 1216
export const XWING_CIPHERTEXT_BYTES = 1120
const XWING_SEED_BYTES = 32
const XWING_ENCAPSULATION_SEED_BYTES = 64
/** Noise, section 3. */
const HANDSHAKE_MESSAGE_BYTES_MAX = 65535

type HandshakeRole = 'initiator' | 'responder'
type KeyPair = { public: Uint8Array; secret: Uint8Array }

export type HandshakeState = {
  readonly role: HandshakeRole
  readonly hybrid: boolean
  /** Messages written and read so far: 0, 1 or 2. */
  readonly messages: number
  readonly symmetric: SymmetricState
  readonly local: KeyPair
  readonly remotePublic: Uint8Array
  readonly ephemeral?: KeyPair
  readonly remoteEphemeral?: Uint8Array
  readonly kem?: KeyPair
  readonly remoteKem?: Uint8Array
  readonly random: (count: number) => Uint8Array
}

type HandshakeOptions = {
  role: HandshakeRole
  hybrid: boolean
  local: { boxPublic: Uint8Array; boxSecret: Uint8Array }
  /** The peer's X25519 key, from its verified certificate. */
  remotePublic: Uint8Array
  /** encodePrologue(...): the same bytes at both ends. */
  prologue: Uint8Array
  /** For vectors and simulations. Called for 32 bytes (ephemeral), then for 32 (X-Wing key) or 64 (encapsulation). */
  random?: (count: number) => Uint8Array
}

/** The state before message 1. The source of a migration is the initiator. */
export function startHandshake(options: HandshakeOptions): HandshakeState {
  const { role, hybrid, local, remotePublic, prologue, random = randomBytes } = options
  if (local.boxPublic.length !== DH_BYTES || local.boxSecret.length !== DH_BYTES || remotePublic.length !== DH_BYTES)
    throw new TypeError('an X25519 key is 32 bytes')
  const [initiatorPublic, responderPublic] = role === 'initiator' ? [local.boxPublic, remotePublic] : [remotePublic, local.boxPublic]
  let symmetric = initialize(PROTOCOL_NAMES[hybrid ? 'hybrid' : 'classical'])
  for (const known of [prologue, initiatorPublic, responderPublic]) symmetric = mixHash(symmetric, known)
  return { role, hybrid, messages: 0, symmetric, local: { public: local.boxPublic, secret: local.boxSecret }, remotePublic, random }
}

/** The initiator writes message 1, the responder message 2. */
function tokensFor(state: HandshakeState, writing: boolean): readonly Token[] {
  if (state.messages > 1) throw new Error('the handshake has two messages')
  const writer = state.messages === 0 ? 'initiator' : 'responder'
  if ((state.role === writer) !== writing) throw new Error(`message ${state.messages + 1} is the ${writer}'s`)
  return PATTERNS[state.hybrid ? 'hybrid' : 'classical'][state.messages]!
}

/**
 * Writes this side's next message; the payload is encrypted. Throws HANDSHAKE_FAILED when the peer's keys (message 1,
 * or its certificate) are unusable.
 */
export function writeMessage(state: HandshakeState, payload: Uint8Array): { state: HandshakeState; message: Uint8Array } {
  return coded(state, () => {
    let next = state
    const parts: Uint8Array[] = []
    for (const token of tokensFor(state, true)) {
      const written = writeToken(next, token)
      next = written.state
      if (written.bytes) parts.push(written.bytes)
    }
    const { state: symmetric, ciphertext } = encryptAndHash(next.symmetric, payload)
    const message = concatBytes(...parts, ciphertext)
    if (message.length > HANDSHAKE_MESSAGE_BYTES_MAX) throw new TypeError(`a handshake payload of ${payload.length} bytes is too large`)
    return { state: { ...next, symmetric, messages: state.messages + 1 }, message }
  })
}

/**
 * Reads the peer's next message. Throws HANDSHAKE_FAILED for anything except the message of a peer with the right keys
 * and prologue in this handshake.
 */
export function readMessage(state: HandshakeState, message: Uint8Array): { state: HandshakeState; payload: Uint8Array } {
  return coded(state, () => {
    if (message.length > HANDSHAKE_MESSAGE_BYTES_MAX) throw new NoiseFailure('too long')
    let next = state
    let rest = message
    for (const token of tokensFor(state, false)) {
      const size = tokenBytes(token)
      if (rest.length < size) throw new NoiseFailure('too short')
      next = readToken(next, token, rest.slice(0, size))
      rest = rest.subarray(size)
    }
    const { state: symmetric, plaintext } = decryptAndHash(next.symmetric, rest)
    return { state: { ...next, symmetric, messages: state.messages + 1 }, payload: plaintext }
  })
}

/** States that finish() has emptied: a second call would silently return another key. */
const spent = new WeakSet<HandshakeState>()

/**
 * What both ends share after message 2: the root of the key schedule, 32 bytes, and the hash of the whole handshake, 64
 * bytes. May be called once: it also zeroes the ephemeral secrets of earlier states of this handshake.
 */
export function finish(state: HandshakeState): { rootKey: Uint8Array; handshakeHash: Uint8Array } {
  if (spent.has(state)) throw new Error('the handshake is already finished')
  const [initiatorKey, responderKey] = transportKeys(state)
  spent.add(state)
  const rootKey = hashParts('godwit/1 root key', 32, initiatorKey, responderKey, state.symmetric.h)
  wipe(initiatorKey, responderKey, state.ephemeral?.secret, state.kem?.secret, state.symmetric.ck, state.symmetric.key)
  return { rootKey, handshakeHash: state.symmetric.h.slice() }
}

/**
 * Noise's two transport keys (initiator's, responder's): for the published vectors. Godwit's own traffic uses keys
 * derived from finish().
 */
export function transportKeys(state: HandshakeState): [Uint8Array, Uint8Array] {
  if (state.messages !== 2) throw new Error('the handshake is not finished')
  return split(state.symmetric)
}

function coded<T>(state: HandshakeState, body: () => T): T {
  try {
    return body()
  } catch (error) {
    if (!(error instanceof NoiseFailure)) throw error
    throw new GodwitError(
      'HANDSHAKE_FAILED',
      `message ${state.messages + 1} of the handshake cannot be opened: the key or the plan differs`,
    )
  }
}

const tokenBytes = (token: Token): number =>
  ({ e: DH_BYTES, e1: XWING_PUBLIC_BYTES + MAC_BYTES, ekem1: XWING_CIPHERTEXT_BYTES + MAC_BYTES })[token as string] ?? 0

function writeToken(state: HandshakeState, token: Token): { state: HandshakeState; bytes?: Uint8Array } {
  if (token === 'e') {
    const secret = state.random(DH_BYTES)
    const ephemeral = { public: sodium().crypto_scalarmult_base(secret), secret }
    return { state: { ...state, ephemeral, symmetric: mixHash(state.symmetric, ephemeral.public) }, bytes: ephemeral.public }
  }
  if (token === 'e1') {
    const seed = state.random(XWING_SEED_BYTES)
    const pair = sodium().crypto_kem_xwing_seed_keypair(seed)
    wipe(seed)
    const { state: symmetric, ciphertext } = encryptAndHash(state.symmetric, pair.publicKey)
    return { state: { ...state, symmetric, kem: { public: pair.publicKey, secret: pair.privateKey } }, bytes: ciphertext }
  }
  if (token === 'ekem1') {
    const seed = state.random(XWING_ENCAPSULATION_SEED_BYTES)
    const sent = encapsulate(state.remoteKem!, seed)
    wipe(seed)
    const { state: symmetric, ciphertext } = encryptAndHash(state.symmetric, sent.ciphertext)
    return { state: { ...state, symmetric: mixKey(symmetric, sent.sharedSecret) }, bytes: ciphertext }
  }
  return { state: mixDh(state, token) }
}

function readToken(state: HandshakeState, token: Token, bytes: Uint8Array): HandshakeState {
  if (token === 'e') return { ...state, remoteEphemeral: bytes, symmetric: mixHash(state.symmetric, bytes) }
  if (token === 'e1') {
    const { state: symmetric, plaintext } = decryptAndHash(state.symmetric, bytes)
    return { ...state, symmetric, remoteKem: plaintext }
  }
  if (token === 'ekem1') {
    const { state: symmetric, plaintext } = decryptAndHash(state.symmetric, bytes)
    return { ...state, symmetric: mixKey(symmetric, decapsulate(plaintext, state.kem!.secret)) }
  }
  return mixDh(state, token)
}

/** es: initiator's ephemeral with responder's static; se: initiator's static with responder's ephemeral. */
function mixDh(state: HandshakeState, token: Token): HandshakeState {
  const ephemeralIsOurs = token === 'ee' || (token === 'es') === (state.role === 'initiator')
  const ours = token !== 'ss' && ephemeralIsOurs ? state.ephemeral!.secret : state.local.secret
  const theirs = token === 'ee' || (token !== 'ss' && !ephemeralIsOurs) ? state.remoteEphemeral! : state.remotePublic
  return { ...state, symmetric: mixKey(state.symmetric, dh(ours, theirs)) }
}

function encapsulate(publicKey: Uint8Array, seed: Uint8Array): { ciphertext: Uint8Array; sharedSecret: Uint8Array } {
  try {
    return sodium().crypto_kem_xwing_enc_deterministic(publicKey, seed)
  } catch (error) {
    throw new NoiseFailure('unusable X-Wing key', { cause: error })
  }
}

function decapsulate(ciphertext: Uint8Array, secret: Uint8Array): Uint8Array {
  try {
    return sodium().crypto_kem_xwing_dec(ciphertext, secret)
  } catch (error) {
    throw new NoiseFailure('unusable X-Wing ciphertext', { cause: error })
  }
}
