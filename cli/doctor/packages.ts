// Packages beside QEMU that some VMs need: each is a warning of its own, with what does not work without it.
// Enters: a PATH, the firmware's files. Leaves: checks. Always holds: nothing is run.
import { constants } from 'node:fs'
import { access } from 'node:fs/promises'
import { join } from 'node:path'
import { firmwarePath, variablesPath } from '../../edge-node/vm/argv.ts'
import type { Check } from './check.ts'

type Needed = { name: string; programs: string[]; files: string[]; use: string }

const PACKAGES: Needed[] = [
  { name: 'qemu-utils', programs: ['qemu-img', 'qemu-nbd'], files: [], use: 'images, local disks and their migration' },
  { name: 'xorriso', programs: ['xorriso'], files: [], use: 'VMs with cloudInit' },
  { name: 'ovmf', programs: [], files: [firmwarePath, variablesPath], use: 'VMs with firmware: uefi' },
]

export async function packageChecks(path: string = process.env['PATH'] ?? '', packages = PACKAGES): Promise<Check[]> {
  return await Promise.all(
    packages.map(async ({ name, programs, files, use }): Promise<Check> => {
      const missing = [...(await without(programs, program => onPath(program, path))), ...(await without(files, isReadable))]
      if (missing.length === 0) return { name, state: 'ok', detail: `installed, for ${use}` }
      return { name, state: 'warn', detail: `${missing.join(' and ')} missing: no ${use}`, advice: `run apt-get install ${name}` }
    }),
  )
}

async function without(items: string[], isThere: (item: string) => Promise<boolean>): Promise<string[]> {
  const there = await Promise.all(items.map(isThere))
  return items.filter((_, i) => !there[i])
}

const canAccess = (path: string, mode: number): Promise<boolean> =>
  access(path, mode).then(
    () => true,
    () => false,
  )
const isReadable = (path: string) => canAccess(path, constants.R_OK)

async function onPath(program: string, path: string): Promise<boolean> {
  for (const folder of path.split(':')) if (folder !== '' && (await canAccess(join(folder, program), constants.X_OK))) return true
  return false
}
