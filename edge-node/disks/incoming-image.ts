// An image that another site sends. Enters: what it is to be (name, root, size), the list of its leaves, DISK payloads.
// Leaves: a raw file with exactly that content.
// Always holds: nothing is asked for before the whole list gives the root; a chunk that is not the one of the list is
// refused before it is written; what was written stays in the file until the image is whole, and counts again only
// after it has been read and hashed. So a cut link, a killed agent or a lost write costs at most a reading.
import { type FileHandle, open } from 'node:fs/promises'
import { GodwitError } from '../../wire/errors.ts'
import { DISK_HEADER_BYTES, readDiskBody, readDiskHeader } from './batch.ts'
import { ChunkSet } from './chunk-set.ts'
import { CHUNK_BYTES, createLeafTree, HASH_BYTES, leafOf } from './chunk-tree.ts'
import { hashFile } from './hash-file.ts'
import { assertRoom } from './image-source.ts'
import { Leaves } from './leaves.ts'

export type ImageFigures = {
  /** Of the chunks that are not zeros. */
  bytesTotal: number
  /** Of those, what is here. */
  bytesDone: number
  /** Of those, what came over the path, not what was found here. */
  bytesReceived: number
}
type Inflate = (frame: Uint8Array, bytes: number) => Uint8Array
type MissingOptions = { signal?: AbortSignal | undefined; onProgress?: ((bytesDone: number) => void) | undefined }

export class IncomingImage {
  readonly figures: ImageFigures = { bytesTotal: 0, bytesDone: 0, bytesReceived: 0 }
  readonly #sizeBytes: number
  readonly #root: string
  readonly #path: string
  readonly #leaves: Leaves
  readonly #tree = createLeafTree()
  readonly #wanted: ChunkSet
  readonly #whole = Promise.withResolvers<void>()
  #listed = 0
  #file: FileHandle | undefined

  constructor(path: string, { sizeBytes, root }: { sizeBytes: number; root: string }) {
    this.#path = path
    this.#sizeBytes = sizeBytes
    this.#root = root
    this.#leaves = new Leaves(sizeBytes)
    this.#wanted = new ChunkSet(this.#leaves.chunks)
  }

  /** The next leaves of the list: of chunks that follow each other. Those that are left out are zeros. */
  list(first: number, hashes: Uint8Array): void {
    const count = hashes.length / HASH_BYTES
    if (!Number.isInteger(count) || first < this.#listed || first + count > this.#leaves.chunks)
      throw new GodwitError('FRAME_MALFORMED', `leaves of chunks ${first} to ${first + count} of ${this.#leaves.chunks}`)
    this.#pushZeros(first)
    this.#leaves.setAll(first, hashes)
    for (let i = 0; i < count; i++) this.#tree.pushLeaf(hashes.subarray(i * HASH_BYTES, (i + 1) * HASH_BYTES))
    this.#listed = first + count
    this.figures.bytesTotal += count * CHUNK_BYTES
  }

  /**
   * The list is complete: what this site lacks of the image. Reads what an earlier transfer left. IMAGE_MISMATCH,
   * DISK_FULL; the signal's reason.
   */
  async missing({ signal, onProgress }: MissingOptions = {}): Promise<ChunkSet> {
    this.#pushZeros(this.#leaves.chunks)
    if (this.#tree.root() !== this.#root) throw new GodwitError('IMAGE_MISMATCH', 'the list of chunks does not give the root of the image')
    this.#file = await open(this.#path, 'r+').catch(() => open(this.#path, 'wx+', 0o600))
    await this.#file.truncate(this.#sizeBytes)
    const here = await this.#readHere(this.#file, { signal, onProgress })
    for (const chunk of this.#leaves.differing(here)) {
      if (!this.#leaves.isZero(chunk)) this.#wanted.add(chunk)
      else await this.#write(Buffer.alloc(this.#lengthOf(chunk)), chunk)
    }
    const missingBytes = this.#wanted.count * CHUNK_BYTES
    await assertRoom(`/proc/self/fd/${this.#file.fd}`, missingBytes)
    this.figures.bytesDone = this.figures.bytesTotal - missingBytes
    if (this.#wanted.count === 0) this.#whole.resolve()
    return this.#wanted
  }

  /** FRAME_MALFORMED, IMAGE_MISMATCH, DISK_FULL, DISK_IO. */
  async apply(payload: Uint8Array, inflate: Inflate): Promise<void> {
    const header = readDiskHeader(payload)
    const raw = payload.subarray(DISK_HEADER_BYTES)
    const { runs, chunks } = readDiskBody(header, header.codec === 1 ? raw : inflate(raw, header.bodyBytes), this.#sizeBytes)
    if (runs.some(({ isZero }) => isZero)) throw new GodwitError('FRAME_MALFORMED', 'zeros of an image do not travel')
    for (const { chunk, bytes } of chunks) {
      if (!this.#wanted.has(chunk)) throw new GodwitError('FRAME_MALFORMED', `chunk ${chunk} of the image was not asked for`)
      if (!leafOf(bytes).equals(this.#leaves.get(chunk)))
        throw new GodwitError('IMAGE_MISMATCH', `chunk ${chunk} of the image is not the one of its list`, {
          hint: "check the image's file at the site that sends it: godwit image show, and the kernel log",
        })
      await this.#write(bytes, chunk)
      this.#wanted.delete(chunk)
      this.figures.bytesDone += CHUNK_BYTES
      this.figures.bytesReceived += bytes.length
    }
    if (this.#wanted.count === 0) this.#whole.resolve()
  }

  /** Resolves when nothing is missing. */
  get whole(): Promise<void> {
    return this.#whole.promise
  }

  /** The file is on the disk. DISK_FULL, DISK_IO. */
  async finish(): Promise<void> {
    await this.#file?.sync().catch(cause => {
      throw this.#failure(cause)
    })
  }

  async close(): Promise<void> {
    await this.#file?.close()
    this.#file = undefined
  }

  async #readHere(file: FileHandle, { signal, onProgress }: MissingOptions): Promise<Leaves> {
    const { size, blocks } = await file.stat()
    const here = new Leaves(this.#sizeBytes)
    const onLeaves = (first: number, hashes: Uint8Array) => here.setAll(first, hashes)
    await hashFile({ fd: file.fd, bytes: size, isSparse: blocks * 512 < size }, { signal, onProgress, onLeaves })
    return here
  }

  async #write(bytes: Uint8Array, chunk: number): Promise<void> {
    await this.#file!.write(bytes, 0, bytes.length, chunk * CHUNK_BYTES).catch(cause => {
      throw this.#failure(cause)
    })
  }

  #failure(cause: NodeJS.ErrnoException): GodwitError {
    const isFull = cause.code === 'ENOSPC' || cause.code === 'EDQUOT'
    if (isFull) return new GodwitError('DISK_FULL', 'the file system of the images folder is full', { cause })
    return new GodwitError('DISK_IO', `the image cannot be written: ${cause.code}`, { cause })
  }

  #lengthOf(chunk: number): number {
    return Math.min(CHUNK_BYTES, this.#sizeBytes - chunk * CHUNK_BYTES)
  }

  /** Up to `chunk`, which is not one of them. */
  #pushZeros(chunk: number): void {
    const isLastShort = chunk === this.#leaves.chunks && this.#listed < chunk && this.#lengthOf(chunk - 1) < CHUNK_BYTES
    this.#tree.pushZeros(chunk - this.#listed - (isLastShort ? 1 : 0))
    if (isLastShort) this.#tree.pushLeaf(leafOf(new Uint8Array(this.#lengthOf(chunk - 1))))
    this.#listed = chunk
  }
}
