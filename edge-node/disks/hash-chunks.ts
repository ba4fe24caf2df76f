// Reads an open file for its Merkle root (chunk-tree.ts), in the thread that calls it. Enters: a descriptor, its size.
// Leaves: the root, how far it is, and the leaves of its chunks where they are wanted.
// Always holds: after each piece it asks whether it is to stop; holes of sparse files are not read (lseek SEEK_DATA
// through perl, which every Debian has; without it they are read as zeros).
import { spawn } from 'node:child_process'
import { readSync } from 'node:fs'
import { createInterface } from 'node:readline'
import { type ErrorBody, GodwitError } from '../../wire/errors.ts'
import { CHUNK_BYTES, createLeafTree, HASH_BYTES, leafOf } from './chunk-tree.ts'

export type OpenFile = {
  fd: number
  bytes: number
  /** It may have holes: fewer blocks are allocated than its size says. */
  isSparse: boolean
}
export type HashTask = OpenFile & {
  /** One Int32: not 0, stop. */
  stop: SharedArrayBuffer
  wantsLeaves: boolean
}
export type HashAnswer =
  | { doneBytes: number }
  | { first: number; leaves: Uint8Array }
  | { root: string }
  | { stopped: true }
  | { error: ErrorBody }

/** Leaves of chunks that follow each other, from `first` on. Chunks that are not named are whole chunks of zeros. */
export type OnLeaves = (first: number, leaves: Uint8Array) => void
type Steps = { isStopped: () => boolean; onProgress: (doneBytes: number) => void; onLeaves?: OnLeaves | undefined }

const READ_BYTES = 16 * CHUNK_BYTES
const PROGRESS_MS = 100

/** In hex; undefined when it was stopped. PREFLIGHT_FILE_CHANGED when the file ends early. */
export async function hashChunks(
  { fd, bytes, isSparse }: OpenFile,
  { isStopped, onProgress, onLeaves }: Steps,
): Promise<string | undefined> {
  const tree = createLeafTree()
  const runs = createLeafRuns(onLeaves)
  const buffer = Buffer.allocUnsafe(READ_BYTES)
  const zeros = Buffer.alloc(CHUNK_BYTES)
  let saidMs = performance.now()
  const whole = Math.floor(bytes / CHUNK_BYTES)
  let chunk = 0
  const read = (to: number) => {
    for (let at = chunk * CHUNK_BYTES; at < to && !isStopped(); ) {
      const got = readFully(fd, buffer.subarray(0, Math.min(READ_BYTES, to - at)), at)
      for (let from = 0; from < got.length; from += CHUNK_BYTES) {
        const piece = got.subarray(from, from + CHUNK_BYTES)
        if (piece.equals(zeros)) tree.pushZeros(1)
        else {
          const leaf = leafOf(piece)
          tree.pushLeaf(leaf)
          runs.push(chunk, leaf)
        }
        chunk++
      }
      at += got.length
      if (performance.now() - saidMs < PROGRESS_MS) continue
      saidMs = performance.now()
      onProgress(at)
    }
  }
  for await (const { from, to } of isSparse ? dataOf(fd, bytes) : [{ from: 0, to: bytes }]) {
    const first = Math.min(whole, Math.floor(from / CHUNK_BYTES))
    if (first > chunk) {
      tree.pushZeros(first - chunk)
      chunk = first
    }
    read(Math.min(bytes, Math.ceil(to / CHUNK_BYTES) * CHUNK_BYTES))
    if (isStopped()) return undefined
  }
  if (whole > chunk) {
    tree.pushZeros(whole - chunk)
    chunk = whole
  }
  // What is left of a file whose last, shorter chunk is a hole.
  read(bytes)
  if (isStopped()) return undefined
  runs.flush()
  onProgress(bytes)
  return tree.root()
}

const LEAVES_AT_ONCE = 1024

/** Collects the leaves of neighbours, so that not every chunk is a message between threads. */
function createLeafRuns(onLeaves: OnLeaves | undefined) {
  let first = 0
  let run: Uint8Array[] = []
  const flush = () => {
    if (run.length > 0) onLeaves?.(first, Buffer.concat(run, run.length * HASH_BYTES))
    run = []
  }
  return {
    push(chunk: number, leaf: Uint8Array) {
      if (onLeaves === undefined) return
      if (chunk !== first + run.length || run.length === LEAVES_AT_ONCE) flush()
      if (run.length === 0) first = chunk
      run.push(leaf)
    },
    flush,
  }
}

function readFully(fd: number, into: Buffer, at: number): Buffer {
  for (let got = 0; got < into.length; ) {
    const bytes = readSync(fd, into, got, into.length - got, at + got)
    if (bytes === 0) throw new GodwitError('PREFLIGHT_FILE_CHANGED', 'the file became shorter while it was read')
    got += bytes
  }
  return into
}

// lseek(2): 3 is SEEK_DATA, 4 is SEEK_HOLE. Beyond the last data SEEK_DATA fails with ENXIO.
const LIST_DATA = `
my $at = 0;
while (1) {
  my $data = sysseek(STDIN, $at, 3);
  if (!defined $data) { exit($!{ENXIO} ? 0 : 1) }
  my $hole = sysseek(STDIN, $data + 0, 4);
  exit(1) if !defined $hole;
  print $data + 0, " ", $hole + 0, "\\n";
  $at = $hole + 0;
}`

/**
 * Where the file has data, in order, as the file system knows it; the rest is holes. What cannot be found out counts as
 * data.
 */
async function* dataOf(fd: number, bytes: number): AsyncGenerator<{ from: number; to: number }> {
  const child = spawn('perl', ['-MErrno', '-e', LIST_DATA], { stdio: [fd, 'pipe', 'ignore'] })
  const ended = new Promise<boolean>(resolve => {
    child.once('error', () => resolve(false))
    child.once('close', code => resolve(code === 0))
  })
  const lines = createInterface({ input: child.stdout! })
  let at = 0
  let isSound = true
  try {
    for await (const line of lines) {
      const [from = Number.NaN, to = Number.NaN] = line.split(' ').map(Number)
      if (from >= bytes) return
      isSound = from >= at && to > from
      if (!isSound) break
      yield { from, to: Math.min(to, bytes) }
      at = to
    }
    if (!isSound || !(await ended)) yield { from: at, to: bytes }
  } finally {
    child.kill('SIGKILL')
    child.stdout?.destroy()
  }
}
