// The prologue of the end-to-end handshake: everything both sides must agree on before a byte of the guest moves. A
// relay or gateway that tells each side another story makes the prologues differ, and the handshake fails.
import { ID_PATTERN, NAME_PATTERN } from '../../wire/types.ts'
import { concatBytes, field, fromHex, u16, u32, u64, utf8 } from '../bytes.ts'

type PrologueFacts = {
  /** Of the plan: it names everything that the two nodes send each other. */
  version: number
  /** 32 hex digits. */
  migrationId: string
  vm: string
  epoch: number
  attempt: number
  /** As issued: bytes with their signatures. */
  sourceCertificate: Uint8Array
  targetCertificate: Uint8Array
  /** hashBytes of the plan's canonical text, 32 bytes. */
  planHash: Uint8Array
  compression: string
}

const RECORD_CIPHER = 'secretstream-xchacha20poly1305'

/** The prologue's bytes; see docs/reference/protocol.md for the layout. */
export function encodePrologue(facts: PrologueFacts): Uint8Array {
  if (!ID_PATTERN.test(facts.migrationId)) throw new TypeError('a migration id is 32 hex digits')
  if (!NAME_PATTERN.test(facts.vm)) throw new TypeError(`'${facts.vm}' is not a name`)
  if (facts.planHash.length !== 32) throw new TypeError('a plan hash is 32 bytes')
  return concatBytes(
    utf8('GWP1'),
    u16(facts.version),
    fromHex(facts.migrationId),
    u64(facts.epoch),
    u32(facts.attempt),
    field(utf8(facts.vm)),
    field(facts.sourceCertificate),
    field(facts.targetCertificate),
    facts.planHash,
    field(utf8(RECORD_CIPHER)),
    field(utf8(facts.compression)),
  )
}
