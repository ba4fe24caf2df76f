// Two sites with the same small or sparse read-only disk, and a guest that has it, at site a.

import { randomBytes } from 'node:crypto'
import { truncate, utimes, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { eventually } from '../../ops/deadline.ts'
import type { MigrationRequest } from '../../wire/admin.ts'
import { hasCode } from '../../wire/errors.ts'
import { MIB } from '../../wire/units.ts'
import { type Lab, type LabOptions, openLab } from './lab.ts'
import { bootGuest, type LabGuest } from './lab-guest.ts'

const DISK = { file: 'd.img', mode: 'readonly', format: 'raw' }

export type DiskScene = AsyncDisposable & {
  lab: Lab
  guest: LabGuest
  image(site: string, file?: string): string
  begin(to: string): Promise<string>
}

/** When the disk was last written to, Unix seconds. */
export const DISK_TIME = 1_000_000_000

/** Of 1 MiB random bytes, or of `sizeBytes` that are a hole. */
export async function openDiskScene(options: LabOptions = {}, sizeBytes?: number): Promise<DiskScene> {
  const lab = await openLab(options)
  try {
    const content = sizeBytes === undefined ? randomBytes(MIB) : ''
    const image = (site: string, file = 'd.img') => join(lab.site(site).imagesDir, file)
    for (const site of ['a', 'b']) {
      await writeFile(image(site), content)
      if (sizeBytes !== undefined) await truncate(image(site), sizeBytes)
      await utimes(image(site), DISK_TIME, DISK_TIME)
    }
    const guest = await bootGuest(lab, 'a', { seed: 11, spec: { disks: [DISK] }, fillBytes: 8 * MIB })
    const dispose = async () => {
      guest[Symbol.dispose]()
      await lab[Symbol.asyncDispose]()
    }
    const begin = (to: string) => beginSoon(lab, { vm: guest.name, to })
    return { lab, guest, image, begin, [Symbol.asyncDispose]: dispose }
  } catch (error) {
    await lab[Symbol.asyncDispose]()
    throw error
  }
}

/**
 * Asks for a migration as soon as the gateway knows that the VM runs, which it hears a moment after its node; gives its
 * id.
 */
export async function beginSoon(lab: Lab, request: MigrationRequest): Promise<string> {
  const tryOnce = () =>
    lab.begin(request).catch(error => {
      if (hasCode(error, 'VM_STATE') || hasCode(error, 'MIGRATION_BUSY')) return undefined
      throw error
    })
  return await eventually(tryOnce, { ms: 60_000, what: 'the VM running, as the gateway sees it' })
}
