// Where does QEMU's stream end? Its device part carries no lengths, and with a return path QEMU keeps the socket open
// until the target has answered. But a pre-copy stream ends with 0x00 (EOF), 0x06 (VMDESCRIPTION), u32 length, and that
// many bytes of JSON. This watches for it: a hint that saves a round trip of downtime. A wrong "no" costs that round
// trip; a wrong "yes" would cut the stream short, the target's QEMU would not load, and the migration would fail before
// the commit with the VM running at the source.

const TAIL_BYTES_MAX = 8 * 1024 * 1024
const MARK = Uint8Array.of(0x00, 0x06)
const HEAD_BYTES = 6

/** Takes device-state bytes as they come; `ended` turns true when the last byte of the JSON description has come. */
export function createEndWatch(): { push(bytes: Uint8Array): boolean } {
  let tail = Buffer.alloc(0)
  let gaveUp = false
  return {
    push(bytes) {
      if (gaveUp) return false
      tail = Buffer.concat([tail, bytes])
      if (tail.length > TAIL_BYTES_MAX) {
        gaveUp = true
        tail = Buffer.alloc(0)
        return false
      }
      for (let at = tail.indexOf(MARK); at >= 0; at = tail.indexOf(MARK, at + 1)) {
        if (tail.length < at + HEAD_BYTES) break
        const end = at + HEAD_BYTES + tail.readUInt32BE(at + 2)
        if (end === tail.length && isDescription(tail.subarray(at + HEAD_BYTES))) return true
      }
      return false
    },
  }
}

function isDescription(bytes: Buffer): boolean {
  if (bytes[0] !== 0x7b || bytes.at(-1) !== 0x7d) return false
  try {
    return 'devices' in JSON.parse(bytes.toString('utf8'))
  } catch {
    return false
  }
}
