// crypto/channel/handshake.ts in the simulation: what Noise KK guarantees, for free. Both sides get the same fresh key
// exactly when both have the same prologue; a message of another handshake is HANDSHAKE_FAILED. (The real handshake has
// tests of its own: test/crypto.)
import { hashBytes } from '../../../../crypto/hash.ts'
import { GodwitError } from '../../../../wire/errors.ts'
import { stage } from '../stage.ts'

type State = { prologue: string; nonces: string }
const text = (bytes: Uint8Array) => Buffer.from(bytes).toString('latin1')
const bytes = (value: string) => new Uint8Array(Buffer.from(value, 'latin1'))

export const startHandshake = ({ prologue }: { prologue: Uint8Array }): State => ({ prologue: text(hashBytes(prologue)), nonces: '' })

export function writeMessage(state: State): { state: State; message: Uint8Array } {
  const nonce = text(Uint8Array.from({ length: 8 }, () => stage().random.uint32() & 0xff))
  const nonces = state.nonces + nonce
  return { state: { ...state, nonces }, message: bytes(state.prologue + nonces) }
}
export function readMessage(state: State, message: Uint8Array): { state: State; payload: Uint8Array } {
  const said = text(message)
  const isOurs = said.startsWith(state.prologue + state.nonces)
  if (!isOurs) throw new GodwitError('HANDSHAKE_FAILED', 'the other side was told something else')
  return { state: { ...state, nonces: said.slice(state.prologue.length) }, payload: new Uint8Array(0) }
}
export const finish = ({ prologue, nonces }: State) => ({
  rootKey: new Uint8Array(hashBytes(bytes(prologue + nonces))),
  handshakeHash: new Uint8Array(32),
})
