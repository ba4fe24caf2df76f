// Warm copies: what this site keeps of the disks of VMs that have left, or whose coming failed, so that only changed
// chunks travel when they come (again). A copy is a folder `DIR/VM` with the files of the disks, their notes (notes.ts)
// and `copy.json`, which says what they are.
// Enters: folders of disks that no QEMU uses any more. Leaves: copies, listed; a folder of disks for a VM that comes.
// Always holds: a folder of disks is in one place: here, or with the VM that comes; nothing here is opened by a QEMU;
// a copy whose disks are not those that are wanted is removed, never used; one order at a time.
import { lstat, mkdir, open, readdir, readFile, rename, rm, stat, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { GodwitError, hasCode } from '../../wire/errors.ts'
import type { Log } from '../../wire/log.ts'
import { checkJson, z } from '../../wire/schema.ts'

const ABOUT = 'copy.json'

const root = z.string().regex(/^([0-9a-f]{64})?$/)
const CopiedDisk = z.object({
  /** The number of the disk, and its format: `0.qcow2`. */
  file: z.string().regex(/^\d{1,2}\.(raw|qcow2)$/),
  sizeBytes: z.int().min(1),
  /** The root of its image; empty: none. */
  base: root,
  /** Which file it is, as of when, where everything of it is noted; absent: it was left in the middle of writing. */
  mark: z.string().max(200).optional(),
})
const About = z.object({
  version: z.literal(1),
  vm: z.string().max(64),
  /** The last that the disks are known to be of. */
  epoch: z.int().min(0),
  /** `left`: the VM has moved; `interrupted`: it was coming. */
  why: z.enum(['left', 'interrupted']),
  /** Where it moved to, or came from. */
  peer: z.object({ site: z.string().max(64), serial: z.string().max(64) }),
  /** Unix ms. */
  at: z.int().min(0),
  disks: z.array(CopiedDisk).min(1).max(16),
})

export type CopiedDisk = z.output<typeof CopiedDisk>
export type About = z.output<typeof About>
export type Shape = Pick<CopiedDisk, 'file' | 'sizeBytes' | 'base'>
type Copy = Pick<About, 'vm' | 'epoch' | 'why' | 'at'> & { peer: string; bytes: number }

type NotedCopy = Copy & { serial: string }

/** Where the notes of a disk are, beside it. */
export const notesPath = (path: string): string => `${path}.notes`

/** Which file it is, and as of when. */
export async function markOf(path: string): Promise<string> {
  const { dev, ino, size, mtimeNs, ctimeNs } = await stat(path, { bigint: true })
  return [dev, ino, size, mtimeNs, ctimeNs].join(' ')
}

/** What a folder of disks says of itself; undefined where it says nothing that counts. */
export async function readAbout(dir: string): Promise<About | undefined> {
  try {
    return checkJson(About, await readFile(join(dir, ABOUT)), { what: ABOUT, code: 'CONFIG_INVALID' })
  } catch {
    return undefined
  }
}

/** Durable when it resolves. */
export async function writeAbout(dir: string, about: About): Promise<void> {
  const path = join(dir, ABOUT)
  await writeFile(`${path}.new`, JSON.stringify(about), { mode: 0o600, flush: true })
  await rename(`${path}.new`, path)
  await syncFolder(dir)
}

/** From now on the folder is no copy, and becomes none. */
export const removeAbout = (dir: string): Promise<void> => rm(join(dir, ABOUT), { force: true })

type CopiesOptions = { dir: string; log: Log }

export const openCopies = (options: CopiesOptions): Copies => new Copies(options)

export class Copies {
  readonly #dir: string
  readonly #log: Log
  #turn: Promise<unknown> = Promise.resolve()
  #making: Promise<boolean> | undefined

  constructor({ dir, log }: CopiesOptions) {
    this.#dir = dir
    this.#log = log
  }

  /** The oldest first. */
  list(): Promise<Copy[]> {
    return this.#inTurn(async () => (await this.#list()).map(({ serial: _, ...copy }) => copy))
  }

  /**
   * The disks of a VM that comes, moved to `to`, which does not exist. False when there is no copy of it; one of other
   * disks, or with files that are none of ours, is removed.
   */
  take(vm: string, shapes: readonly Shape[], to: string): Promise<boolean> {
    return this.#inTurn(async () => {
      const about = await readAbout(join(this.#dir, vm))
      if (!about) return false
      const shown = (disks: readonly Shape[]) => JSON.stringify(disks.map(({ file, sizeBytes, base }) => [file, sizeBytes, base]))
      const isSame = about.vm === vm && shown(about.disks) === shown(shapes)
      const problem = isSame ? await problemOf(join(this.#dir, vm), about.disks) : 'the VM has other disks now'
      if (problem === undefined) await rename(join(this.#dir, vm), to)
      else await this.#remove(vm, problem)
      return problem === undefined
    })
  }

  /** A folder of disks that is in use is no copy from now on. */
  disown(dir: string): Promise<void> {
    return removeAbout(dir)
  }

  /** Keeps a folder of disks that says of itself what it is. False when it does not, or cannot be kept. */
  keep(vm: string, from: string): Promise<boolean> {
    return this.#inTurn(async () => {
      const about = await readAbout(from)
      if (about?.vm !== vm) return false
      try {
        await mkdir(this.#dir, { recursive: true, mode: 0o700 })
        await rm(join(this.#dir, vm), { recursive: true, force: true })
        await rename(from, join(this.#dir, vm))
        await syncFolder(this.#dir)
        this.#log.info('warm copy kept', { vm, epoch: about.epoch, why: about.why })
        return true
      } catch (error) {
        this.#log.warn('warm copy could not be kept', { vm, error })
        return false
      }
    })
  }

  /** COPY_UNKNOWN. */
  async remove(vm: string): Promise<void> {
    if ((await this.#removeWhere(copy => copy.vm === vm, 'on request')) > 0) return
    throw new GodwitError('COPY_UNKNOWN', `this site has no warm copy of a VM named ${vm}`)
  }

  /** `before`: Unix ms. */
  async removeOlder(before: number): Promise<void> {
    await this.#removeWhere(({ at }) => at <= before, 'it is old')
  }

  /** Of the sites with these certificates. */
  async removeOf(serials: ReadonlySet<string>): Promise<void> {
    await this.#removeWhere(({ serial }) => serials.has(serial), 'the certificate of the other site is revoked')
  }

  /** Again, each time without the oldest copy, while there is one and the file system is full. */
  async withRoom<T>(work: () => Promise<T>): Promise<T> {
    for (;;) {
      try {
        return await work()
      } catch (error) {
        if (!hasCode(error, 'DISK_FULL')) throw error
        // All who find the file system full at once wait for one removal.
        this.#making ??= this.#removeOldest().finally(() => {
          this.#making = undefined
        })
        if (!(await this.#making)) throw error
      }
    }
  }

  /** What an agent that was killed left of a removal. */
  async clear(): Promise<void> {
    for (const name of await readdir(this.#dir).catch(() => []))
      if ((await readAbout(join(this.#dir, name)))?.vm !== name) await rm(join(this.#dir, name), { recursive: true, force: true })
  }

  async #list(): Promise<NotedCopy[]> {
    const copies: NotedCopy[] = []
    for (const name of await readdir(this.#dir).catch(() => [])) {
      const about = await readAbout(join(this.#dir, name))
      if (about?.vm !== name) continue
      const { vm, epoch, why, peer, at } = about
      copies.push({ vm, epoch, why, at, peer: peer.site, serial: peer.serial, bytes: await allocatedBytes(join(this.#dir, name)) })
    }
    return copies.sort((a, b) => a.at - b.at)
  }

  /** Gives how many there were. */
  #removeWhere(isOver: (copy: NotedCopy) => boolean, why: string): Promise<number> {
    return this.#inTurn(async () => {
      const over = (await this.#list()).filter(isOver)
      for (const { vm } of over) await this.#remove(vm, why)
      return over.length
    })
  }

  #removeOldest(): Promise<boolean> {
    return this.#inTurn(async () => {
      const [oldest] = await this.#list()
      if (oldest) await this.#remove(oldest.vm, 'the file system is full')
      return oldest !== undefined
    })
  }

  async #remove(vm: string, why: string): Promise<void> {
    this.#log.info('warm copy removed', { vm, why })
    await removeAbout(join(this.#dir, vm))
    await rm(join(this.#dir, vm), { recursive: true, force: true })
  }

  #inTurn<T>(work: () => Promise<T>): Promise<T> {
    const mine = this.#turn.then(work)
    this.#turn = mine.catch(() => {})
    return mine
  }
}

async function allocatedBytes(dir: string): Promise<number> {
  let bytes = 0
  for (const name of await readdir(dir)) bytes += (await stat(join(dir, name))).blocks * 512
  return bytes
}

async function syncFolder(path: string): Promise<void> {
  await using folder = await open(path)
  await folder.sync()
}

/** Why these files are not to be opened; undefined: they are. */
async function problemOf(dir: string, disks: readonly Shape[]): Promise<string | undefined> {
  for (const { file, sizeBytes } of disks) {
    const path = join(dir, file)
    const found = await lstat(path).catch(() => undefined)
    if (!found?.isFile()) return `${file} is no file`
    const isQcow2 = file.endsWith('.qcow2')
    const problem = isQcow2 ? await qcow2Problem(path, sizeBytes) : found.size === sizeBytes ? undefined : 'it has another size'
    if (problem !== undefined) return `${file}: ${problem}`
  }
  return undefined
}

/** Why a file is no qcow2 of this size as we make them (its header may name other files); undefined: it is one. */
async function qcow2Problem(path: string, sizeBytes: number): Promise<string | undefined> {
  await using file = await open(path)
  const header = Buffer.alloc(80)
  await file.read(header, 0, header.length, 0)
  if (header.readUInt32BE(0) !== 0x514649fb || header.readUInt32BE(4) !== 3) return 'it is no qcow2 of version 3'
  if (header.readBigUInt64BE(24) !== BigInt(sizeBytes)) return 'it has another size'
  if (header.readUInt32BE(32) !== 0) return 'it is encrypted'
  return header.readBigUInt64BE(72) === 0n ? undefined : 'it has features that need other files or a repair'
}
