// The local disks of a VM that is coming, at their target: new files, or a warm copy (disks/copies.ts) that is brought
// up to date.
// Enters: the folder with the files, DISK payloads, the roots that the source has. Leaves: what the files hold when the
// migration begins, the finished files; after a failure a folder that can be kept as a warm copy.
// Always holds: leaves are believed where the notes are of this very file as it is, otherwise every chunk is read; data
// are flushed every 5 s and every 256 MiB, so that a power failure costs no more; a folder whose content is in doubt
// says nothing of itself (removeAbout), so it is not kept.
import { type FileHandle, open, readFile, writeFile } from 'node:fs/promises'
import { basename } from 'node:path'
import { type ErrorCode, GodwitError, toGodwitError } from '../../wire/errors.ts'
import { type BlockReader, createBlockReader } from '../disks/block-reader.ts'
import { ChunkSet } from '../disks/chunk-set.ts'
import { type About, type CopiedDisk, type Copies, markOf, notesPath, readAbout, removeAbout, writeAbout } from '../disks/copies.ts'
import { type HashOptions, progressOver } from '../disks/digests.ts'
import { HELD_BYTES_MAX, type HeldPart, heldParts } from '../disks/held.ts'
import type { Leaves } from '../disks/leaves.ts'
import { type Base, decodeNotes, differences, encodeNotes } from '../disks/notes.ts'
import { createDiskReceiver, type DiskReceiver } from '../disks/receiver.ts'
import { readOwnContent } from '../disks/reread.ts'
import { type DiskServer, serveDisk } from '../disks/server.ts'
import { inflate, loadZstd } from '../pages/compress.ts'

const FLUSH_MS = 5_000
const FLUSH_BYTES = 256 * 1024 * 1024
/** After these the folder is not kept: its content is in doubt, or its room is needed. */
const GIVEN_UP: readonly ErrorCode[] = ['MANIFEST_MISMATCH', 'FRAME_MALFORMED', 'DISK_FULL', 'DISK_IO', 'COPY_UNUSABLE', 'NBD_REFUSED']

/** The other site, and the epoch that the disks are of. */
export type Passage = { epoch: number; peer: { site: string; serial: string } }

type DiskFile = { index: number; path: string; format: 'raw' | 'qcow2'; sizeBytes: number; base: Base; image: string | undefined }
/** `written`: chunks that are not as in the base. */
type Disk = DiskFile & { server: DiskServer; held: Leaves; written: ChunkSet; plain: FileHandle | undefined }
type ComingOptions = { vm: string; dir: string; disks: readonly DiskFile[]; passage: Passage; copies: Copies; how: HashOptions }

/** PREFLIGHT_QEMU_MISSING, NBD_*, COPY_UNUSABLE; the signal's reason. */
export async function openComingDisks({ vm, dir, disks: files, passage, copies, how }: ComingOptions): Promise<ComingDisks> {
  const zstd = await loadZstd()
  const copy = await readAbout(dir)
  const disks: Disk[] = []
  try {
    const progress = progressOver(
      files.map(({ sizeBytes }) => ({ bytes: sizeBytes })),
      how.onProgress,
    )
    for (const file of files) {
      const known = await knownOf(file, copy)
      const server = await serveDisk(dir, { ...file, file: basename(file.path) })
      // A plain file that has all chunks but some: the disk's own, or its image.
      const plainPath = file.format === 'raw' ? file.path : file.image
      const plain = plainPath === undefined ? undefined : await open(plainPath)
      const written = new ChunkSet(file.base.leaves.chunks)
      disks.push({ ...file, server, held: known ?? file.base.leaves.copy(), written, plain })
      const onProgress = progress.of(basename(file.path))
      if (!known) await readOwnContent(server.client, file.base.leaves, disks.at(-1)!.held, { signal: how.signal, onProgress })
      for (const { first, count } of differences(disks.at(-1)!.held, file.base.leaves))
        for (let chunk = first; chunk < first + count; chunk++) written.add(chunk)
      progress.next()
    }
    const shapes = disks.map(({ path, sizeBytes, base }) => ({ file: basename(path), sizeBytes, base: base.root }))
    const about: About = { version: 1, vm, epoch: passage.epoch, why: 'interrupted', peer: passage.peer, at: Date.now(), disks: shapes }
    // Without marks: from here on the files change.
    await writeAbout(dir, about)
    return new ComingDisks(dir, disks, about, copies, (frame, bytes) => inflate(zstd, frame, bytes))
  } catch (error) {
    await closeAll(disks)
    if (!how.signal?.aborted) await removeAbout(dir)
    throw error
  }
}

/** What a file holds as far as it is known without reading it; undefined: it must be read. */
async function knownOf({ path, sizeBytes, base }: DiskFile, copy: About | undefined): Promise<Leaves | undefined> {
  if (!copy) return base.leaves.copy()
  const noted = copy.disks.find(({ file }) => file === basename(path))
  if (noted?.mark === undefined || noted.mark !== (await markOf(path))) return undefined
  const notes = await readFile(notesPath(path)).catch(() => undefined)
  return notes && decodeNotes(notes, sizeBytes, base)
}

const readableOf = ({ server: { client }, format, plain, written }: Disk) => ({
  sizeBytes: client.sizeBytes,
  read: (offset: number, into: Uint8Array) => client.read(offset, into),
  plain: plain && { fd: plain.fd, except: format === 'raw' ? undefined : written },
})

const closeAll = async (disks: readonly Disk[]): Promise<void> => {
  await Promise.all(disks.flatMap(({ server, plain }) => [server.close(), plain?.close()]))
}

/** Where the file system is full, warm copies of other VMs go first. */
const roomyWriter = (client: DiskServer['client'], copies: Copies) => ({
  write: (offset: number, bytes: Uint8Array) => copies.withRoom(() => client.write(offset, bytes)),
  zero: (offset: number, length: number) => copies.withRoom(() => client.zero(offset, length)),
  flush: () => client.flush(),
})

export class ComingDisks {
  readonly #dir: string
  readonly #disks: readonly Disk[]
  readonly #about: About
  readonly #receiver: DiskReceiver
  readonly #timer: NodeJS.Timeout
  readonly blocks: BlockReader
  #flushing: Promise<void> | undefined
  #flushedBytes = 0
  #failure: GodwitError | undefined
  /** Everything that came is on the disk. */
  #isFlushed = false

  constructor(
    dir: string,
    disks: readonly Disk[],
    about: About,
    copies: Copies,
    inflated: (frame: Uint8Array, bytes: number) => Uint8Array,
  ) {
    this.#dir = dir
    this.#disks = disks
    this.#about = about
    this.#receiver = createDiskReceiver(
      disks.map(({ sizeBytes, server, held, written }) => ({ sizeBytes, held, written, writer: roomyWriter(server.client, copies) })),
      inflated,
    )
    this.blocks = createBlockReader(disks.map(readableOf))
    this.#timer = setInterval(() => this.#flushSoon(), FLUSH_MS)
    this.#timer.unref()
  }

  /** What the files hold besides their bases. COPY_UNUSABLE when that is too much to be told. */
  held(): HeldPart[] {
    const parts = this.#disks.flatMap(({ held, base }, disk) => [...heldParts(disk, held, base.leaves)])
    if (parts.reduce((sum, { body }) => sum + body.length, 0) <= HELD_BYTES_MAX) return parts
    throw this.#failed(new GodwitError('COPY_UNUSABLE', `the warm copy of ${this.#about.vm} is too large to be compared; it is removed`))
  }

  async apply(payload: Uint8Array): Promise<void> {
    if (this.#failure) throw this.#failure
    try {
      await this.#receiver.apply(payload)
    } catch (error) {
      throw this.#failed(toGodwitError(error))
    }
    if (this.#receiver.writtenBytes - this.#flushedBytes >= FLUSH_BYTES) this.#flushSoon()
  }

  async finish(roots: readonly string[]): Promise<void> {
    clearInterval(this.#timer)
    await this.#flushing
    if (this.#failure) throw this.#failure
    await this.#receiver.flush()
    const here = this.#receiver.roots()
    const other = here.findIndex((root, disk) => root !== roots[disk])
    if (here.length !== roots.length || other >= 0)
      throw this.#failed(new GodwitError('MANIFEST_MISMATCH', `local disk ${other} at the target is not what the source has`))
    this.#isFlushed = true
    await this.#closeServers()
  }

  /** The migration has failed: what came can be kept, and is noted as far as it is known to be on the disk. */
  async close(): Promise<void> {
    clearInterval(this.#timer)
    await this.#flushing
    const flushed = async () => {
      await this.#receiver.flush()
      return true
    }
    const isKnown = !this.#failure && (this.#isFlushed || (await flushed().catch(() => false)))
    await this.#closeServers()
    if (this.#failure && GIVEN_UP.includes(this.#failure.code)) return await removeAbout(this.#dir)
    if (isKnown) await this.#note()
  }

  async #note(): Promise<void> {
    const disks: CopiedDisk[] = []
    for (const [i, { path, sizeBytes, base, held }] of this.#disks.entries()) {
      await writeFile(notesPath(path), encodeNotes(sizeBytes, base, held), { mode: 0o600, flush: true })
      disks.push({ ...this.#about.disks[i]!, mark: await markOf(path) })
    }
    await writeAbout(this.#dir, { ...this.#about, at: Date.now(), disks })
  }

  #flushSoon(): void {
    const bytes = this.#receiver.writtenBytes
    if (this.#flushing || bytes === this.#flushedBytes) return
    this.#flushing = this.#receiver
      .flush()
      .then(
        () => {
          this.#flushedBytes = bytes
        },
        // What was not flushed may be lost: no later flush proves the contrary.
        error => void this.#failed(toGodwitError(error)),
      )
      .finally(() => {
        this.#flushing = undefined
      })
  }

  #failed(error: GodwitError): GodwitError {
    this.#failure ??= error
    return error
  }

  async #closeServers(): Promise<void> {
    await closeAll(this.#disks)
  }
}
