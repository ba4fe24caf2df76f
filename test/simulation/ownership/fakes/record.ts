// crypto/channel/record.ts, cutter.ts and page-hash.ts in the simulation: what the AEAD guarantees, for free. A record
// opens only under the key of its own stream and meeting, in its place; the last one says that it is the last.
import type { Cutter } from '../../../../crypto/channel/cutter.ts'
import { GodwitError } from '../../../../wire/errors.ts'
import { encodeFrame } from '../../../../wire/frame.ts'
import { FRAME } from '../../../../wire/types.ts'

const KEY_BYTES = 8
const failed = () => new GodwitError('DECRYPT_FAILED', 'a record that does not open')

type Sealing = { key: Uint8Array }

export function createSealer({ key }: Sealing) {
  let records = 0
  return {
    header: new Uint8Array(24),
    get records() {
      return records
    },
    seal(data: Uint8Array, final: boolean): Uint8Array {
      const out = new Uint8Array(KEY_BYTES + 5 + data.length)
      out.set(key.subarray(0, KEY_BYTES))
      new DataView(out.buffer).setUint32(KEY_BYTES, records++)
      out[KEY_BYTES + 4] = final ? 1 : 0
      out.set(data, KEY_BYTES + 5)
      return out
    },
    digest: () => digestOf(key, records),
    wipe: () => {},
  }
}

export function createOpener({ key }: Sealing) {
  let records = 0
  return {
    get records() {
      return records
    },
    open(record: Uint8Array) {
      const place = new DataView(record.buffer, record.byteOffset).getUint32(KEY_BYTES)
      if (Buffer.compare(record.subarray(0, KEY_BYTES), key.subarray(0, KEY_BYTES)) !== 0 || place !== records) throw failed()
      records += 1
      return { data: record.slice(KEY_BYTES + 5), final: record[KEY_BYTES + 4] === 1 }
    },
    digest: () => digestOf(key, records),
    wipe: () => {},
  }
}

function digestOf(key: Uint8Array, records: number): Uint8Array {
  const digest = new Uint8Array(32)
  digest.set(key.subarray(0, KEY_BYTES))
  digest[31] = records & 0xff
  return digest
}

export function createCutter(sealer: unknown): Cutter {
  const { seal } = sealer as ReturnType<typeof createSealer>
  let parts: Uint8Array[] = []
  const cut = (final: boolean) => {
    const frame = encodeFrame(FRAME.RECORD, seal(new Uint8Array(Buffer.concat(parts)), final))
    parts = []
    return frame
  }
  return {
    write(bytes) {
      if (bytes.length > 0) parts.push(bytes.slice())
      return []
    },
    flush: () => (parts.length > 0 ? [cut(false)] : []),
    end: () => [cut(true)],
    get pendingBytes() {
      return parts.reduce((sum, part) => sum + part.length, 0)
    },
  }
}

export const createPageHasher = () => ({ bytes: 16, hash: () => {} })
