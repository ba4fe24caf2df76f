// The local disk of the demo's VM, compared from two sides. Enters: the guest's own check of its disk, and the SHA-256
// that a program in the guest finds; the disk's file at the VM's site. Leaves: whether the two sides agree. Always
// holds: the guest writes nothing from its SHA-256 on, and the file is read after its QEMU has ended.
import { execFile } from 'node:child_process'
import { createHash } from 'node:crypto'
import { createReadStream } from 'node:fs'
import { rm } from 'node:fs/promises'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { localDiskPath } from '../../edge-node/vm/argv.ts'
import { requestJson } from '../../ops/http-client.ts'
import { MIB } from '../../wire/units.ts'
import type { Observer } from './observer.ts'
import { type DemoContext, problemsOf, VM } from './scene.ts'
import type { DemoStage } from './stage.ts'

const DISK_BYTES = 128 * MIB
const CHECK_MS = 60_000
const STOP_MS = 30_000
const CONVERT_MS = 60_000

export const DISK_SPEC = { mode: 'local', size: `${DISK_BYTES / MIB}MiB`, format: 'qcow2' } as const

type DiskCheck = { blocks: number; bad: number; writes: number; inGuest: string; ofFile: string }

/** Stops the VM. */
export async function examineDisk({ say, signal }: DemoContext, stage: DemoStage, observer: Observer, site: string): Promise<DiskCheck> {
  say('the guest reads its disk back and compares each block with what its memory knows of it, then stops writing ...')
  const [audited, summed] = [observer.next('audit-disk', CHECK_MS), observer.next('disk-sum', CHECK_MS)]
  summed.catch(() => {})
  observer.type('sum')
  const { blocks, bad, writes } = await audited
  const { sha256 } = await summed
  const body = { force: true }
  await requestJson({ socketPath: stage.socketOf(site), method: 'POST', path: `/v1/vms/${VM}/stop`, body, timeoutMs: STOP_MS })
  const file = localDiskPath(join(stage.dir, site, 'state', 'vms', VM), 0, DISK_SPEC)
  const raw = join(stage.dir, 'disk.raw')
  try {
    const words = ['convert', '-f', DISK_SPEC.format, '-O', 'raw', file, raw]
    await promisify(execFile)('qemu-img', words, { signal, timeout: CONVERT_MS })
    const hash = createHash('sha256')
    for await (const chunk of createReadStream(raw)) hash.update(chunk as Buffer)
    return { blocks, bad, writes, inGuest: sha256, ofFile: hash.digest('hex') }
  } finally {
    await rm(raw, { force: true })
  }
}

export const judgeDisk = ({ blocks, bad, writes, inGuest, ofFile }: DiskCheck): string[] =>
  problemsOf([
    [blocks > 0 && bad === 0, `the guest found ${bad} bad blocks of ${blocks} on its disk`],
    [writes > 0, 'the guest wrote nothing to its disk after the start, so the check proves nothing'],
    [inGuest === ofFile, `the disk has SHA-256 ${inGuest} in the guest, and its file at the site has ${ofFile}`],
  ])

export const diskLines = ({ blocks, bad, writes, inGuest, ofFile }: DiskCheck): string[] => [
  `disk check by the guest: ${blocks} blocks, ${bad} bad, ${writes} rewrites since the boot`,
  `SHA-256 of the disk: ${inGuest.slice(0, 16)}... in the guest, ${ofFile.slice(0, 16)}... of its file at the last site`,
]
