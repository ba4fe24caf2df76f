// Pages into the memory of the QEMU that waits. At BARRIER(n) a stream waits for all others.
import type { Applier, ApplierOptions } from '../../../../edge-node/pages/apply.ts'
import { memoryOf } from '../qemu.ts'

export function createApplier({ streams, memory }: ApplierOptions): Applier {
  const qemu = memoryOf.get(memory[0]!.fd)
  const waiting = new Map<number, { here: number; open: () => void; opened: Promise<void> }>()
  let failure: unknown
  const at = (n: number) => {
    let barrier = waiting.get(n)
    if (!barrier) {
      let open = () => {}
      const opened = new Promise<void>(resolve => {
        open = resolve
      })
      barrier = { here: 0, open, opened }
      waiting.set(n, barrier)
    }
    return barrier
  }
  const applier = {
    async batch(_: number, payload: Uint8Array) {
      if (failure) throw failure
      const view = new DataView(payload.buffer, payload.byteOffset, payload.length)
      if (qemu) qemu.pages[view.getUint32(0)] = view.getUint32(4)
    },
    async barrier(_: number | 'skeleton', n: number) {
      if (failure) throw failure
      const barrier = at(n)
      if (++barrier.here === streams + 1) barrier.open()
      await barrier.opened
    },
    finish: async () => {},
    ended: Promise.resolve(),
    async abort(error: unknown) {
      failure ??= error
    },
    stats: () => ({}),
  }
  return applier as unknown as Applier
}
