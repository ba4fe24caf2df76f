// The records of qemu.ts, which come one in a chunk.
import type { Parser, RamBlock, StreamEvents } from '../../../../edge-node/stream/parse.ts'
import { deviceBytes, PAGES, RECORD } from '../qemu.ts'

export const MEMORY_BYTES = 32 * 1024 * 1024
const BLOCK: RamBlock = { name: 'ram0', index: 0, usedBytes: MEMORY_BYTES, captured: true }

export function createParser(events: StreamEvents): Pick<Parser, 'push' | 'end' | 'phase'> {
  let phase: Parser['phase'] = 'header'
  return {
    push(chunk) {
      const view = new DataView(chunk.buffer, chunk.byteOffset, chunk.length)
      switch (chunk[0]) {
        case RECORD.blocks:
          phase = 'iterate'
          events.skeleton(Uint8Array.of(1))
          return events.blocks([BLOCK])
        case RECORD.page:
          return events.page(BLOCK, view.getUint32(1) % PAGES, chunk.slice(5))
        case RECORD.ramEnd:
          phase = 'devices'
          return events.ramEnd()
        default:
          events.skeleton(deviceBytes(view.getUint32(1)))
      }
    },
    end() {},
    get phase() {
      return phase
    },
  }
}
