// Godwit as a mover of VMs with disks: the sites of bench:wan, with an image at both, or with a disk that nothing is
// known of at the target. Enters: a bed, a disk. Leaves: a mover.
import { join } from 'node:path'
import { requestUpgrade } from '../../ops/http-client.ts'
import { openGodwit } from '../wan/godwit.ts'
import { BENCH_VM } from '../wan/spec.ts'
import { IMAGE } from './cases.ts'
import { fillDisk } from './files.ts'
import type { MakeDiskMover } from './run-one.ts'

const VARIANT = { name: 'godwit', kind: 'godwit', congestion: 'bbr', method: 'live' } as const

export const makeGodwitWithDisk: MakeDiskMover = async ({ bed, base, specText, content, cell }) => {
  const fill = async (path: string) => await fillDisk(path, content)
  const plan = base === 'image' ? { images: [{ name: IMAGE, from: content }] } : { images: [], fill }
  const mover = await openGodwit({ bed, variant: VARIANT, specText, cell }, plan)
  return {
    ...mover,
    prepare: async () => {},
    move: (to, signal) => mover.move(signal, to),
    async type(at, line) {
      const socket = await requestUpgrade({ socketPath: join(bed.dir, at, 'node.sock'), path: `/v1/vms/${BENCH_VM}/console?replay=0` })
      await new Promise<void>(resolve => socket.end(`${line}\n`, () => resolve()))
    },
  }
}
