// QMP on the wire: one JSON object a line (QEMU, docs/interop/qmp-spec). Pure. Enters: bytes in any pieces. Leaves: the
// objects, in order; or a coded error, after which the decoder is unusable. Always holds: at most `maxBytes` of an
// unfinished line are kept, whatever QEMU sends (a guest may control it).
import { GodwitError } from '../../wire/errors.ts'

/** The longest accepted line, bytes. query-qmp-schema, the longest answer of QEMU 10.0, has about 250 KB. */
const MAX_LINE_BYTES = 4 * 1024 * 1024

export type QmpObject = Record<string, unknown>

const NEWLINE = 10

export class QmpDecoder {
  readonly #maxBytes: number
  #pieces: Uint8Array[] = []
  #keptBytes = 0

  constructor(maxBytes = MAX_LINE_BYTES) {
    this.#maxBytes = maxBytes
  }

  /**
   * The objects completed by this chunk. Throws FRAME_TOO_LARGE or FRAME_MALFORMED. Kept bytes are copied, so the chunk
   * may be reused.
   */
  push(chunk: Uint8Array): QmpObject[] {
    const objects: QmpObject[] = []
    let start = 0
    for (;;) {
      const end = chunk.indexOf(NEWLINE, start)
      const piece = chunk.subarray(start, end < 0 ? chunk.length : end)
      if (this.#keptBytes + piece.length > this.#maxBytes)
        throw new GodwitError('FRAME_TOO_LARGE', `QEMU sent a QMP line of more than ${this.#maxBytes} bytes`)
      if (end < 0) {
        if (piece.length > 0) this.#pieces.push(Uint8Array.from(piece)) // not slice(): a Buffer would share its memory
        this.#keptBytes += piece.length
        return objects
      }
      const line = this.#pieces.length === 0 ? piece : Buffer.concat([...this.#pieces, piece])
      this.#pieces = []
      this.#keptBytes = 0
      const text = Buffer.from(line.buffer, line.byteOffset, line.length).toString('utf8').trim()
      if (text !== '') objects.push(parseObject(text))
      start = end + 1
    }
  }

  /** Call when the stream ends: FRAME_TRUNCATED if it ended within a line. */
  end(): void {
    if (this.#keptBytes > 0) throw new GodwitError('FRAME_TRUNCATED', `QMP ended within a line, after ${this.#keptBytes} bytes of it`)
  }
}

function parseObject(text: string): QmpObject {
  let value: unknown
  try {
    value = JSON.parse(text)
  } catch (cause) {
    throw new GodwitError('FRAME_MALFORMED', `QEMU sent a QMP line that is not JSON: ${text.slice(0, 80)}`, { cause })
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value))
    throw new GodwitError('FRAME_MALFORMED', `QEMU sent a QMP line that is not an object: ${text.slice(0, 80)}`)
  return value as QmpObject
}

/** One command as a line. */
export function encodeCommand(id: number, command: string, args?: QmpObject): string {
  return `${JSON.stringify({ execute: command, ...(args === undefined ? {} : { arguments: args }), id })}\n`
}
