// The target's half of moving disks. Enters: DISK payloads as they came, writers of the disks' files. Leaves: disks
// with that content, their roots.
// Always holds: nothing is written outside of a disk; `roots` is of what the writers have acknowledged, and after
// `flush` that is on the disk. Payloads of one region come one after the other; those of others may come at the same
// time.

import { GodwitError } from '../../wire/errors.ts'
import { chunkBytes, DISK_HEADER_BYTES, readDiskBody, readDiskHeader } from './batch.ts'
import type { ChunkSet } from './chunk-set.ts'
import { CHUNK_BYTES, leafOf } from './chunk-tree.ts'
import type { Leaves } from './leaves.ts'

/** Zeroing in one request, bytes: NBD's length field has 32 bits. */
const ZERO_BYTES_MAX = 1024 * 1024 * 1024

type DiskWriter = {
  write(offset: number, bytes: Uint8Array): Promise<void>
  zero(offset: number, length: number): Promise<void>
  flush(): Promise<void>
}

type ReceivedDisk = {
  sizeBytes: number
  writer: DiskWriter
  /** What the file holds; kept up to date. */
  held: Leaves
  /** Chunks that were written, or are being written. */
  written?: ChunkSet | undefined
}

export type DiskReceiver = {
  /** FRAME_MALFORMED, DISK_FULL, DISK_IO, NBD_*. After an error of a writer the disk is of no use. */
  apply(payload: Uint8Array): Promise<void>
  flush(): Promise<void>
  roots(): string[]
  readonly writtenBytes: number
}

/** `inflate`: the content of a zstd frame of exactly so many bytes, or FRAME_MALFORMED (pages/compress.ts). */
export function createDiskReceiver(
  disks: readonly ReceivedDisk[],
  inflate: (frame: Uint8Array, bytes: number) => Uint8Array,
): DiskReceiver {
  let writtenBytes = 0
  const running = new Set<Promise<void>>()

  const applyNow = async (payload: Uint8Array) => {
    const header = readDiskHeader(payload)
    const disk = disks[header.disk]
    if (!disk) throw new GodwitError('FRAME_MALFORMED', `DISK frame: disk ${header.disk} of ${disks.length}`)
    const raw = payload.subarray(DISK_HEADER_BYTES)
    const { runs, chunks } = readDiskBody(header, header.codec === 1 ? raw : inflate(raw, header.bodyBytes), disk.sizeBytes)
    const { writer, held, sizeBytes } = disk
    let next = 0
    for (const { first, count, isZero } of runs) {
      for (let chunk = first; chunk < first + count; chunk++) disk.written?.add(chunk)
      if (isZero) {
        await zeroRun(writer, first * CHUNK_BYTES, Math.min(sizeBytes, (first + count) * CHUNK_BYTES))
        for (let chunk = first; chunk < first + count; chunk++) held.setZero(chunk)
        continue
      }
      // Chunks of a run stand behind each other in the body too: one write.
      const from = chunks[next]!.bytes
      const length = (count - 1) * CHUNK_BYTES + chunkBytes(first + count - 1, sizeBytes)
      await writer.write(first * CHUNK_BYTES, new Uint8Array(from.buffer, from.byteOffset, length))
      writtenBytes += length
      for (let i = 0; i < count; i++) held.set(first + i, leafOf(chunks[next + i]!.bytes))
      next += count
    }
  }
  return {
    apply(payload) {
      const done = applyNow(payload)
      const over = done.catch(() => {})
      running.add(over)
      void over.then(() => running.delete(over))
      return done
    },
    async flush() {
      await Promise.all(running)
      for (const { writer } of disks) await writer.flush()
    },
    roots: () => disks.map(({ held }) => held.root()),
    get writtenBytes() {
      return writtenBytes
    },
  }
}

async function zeroRun(writer: DiskWriter, from: number, to: number): Promise<void> {
  for (let at = from; at < to; at += ZERO_BYTES_MAX) await writer.zero(at, Math.min(ZERO_BYTES_MAX, to - at))
}
