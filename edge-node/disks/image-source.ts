// The source of an import: a file of this host, or what an http(s) server answers. Enters: a path or URL. Leaves: a
// copy with holes, and its SHA-256.
// Always holds: a file system is never filled up; a server that sends nothing for STILL_MS, redirects without end or
// ends early is an error; a URL's secrets are in no message.
import { createHash, type Hash } from 'node:crypto'
import { type FileHandle, open, stat, statfs } from 'node:fs/promises'
import { basename } from 'node:path'
import { GodwitError } from '../../wire/errors.ts'
import type { ImportFormat } from './tools.ts'

/** Never filled up: VMs' logs and journals are often on the same file system. */
const SPARE_BYTES = 256 * 1024 * 1024
const READ_BYTES = 1024 * 1024
const STILL_MS = 60_000
const QCOW2_MAGIC = 0x514649fb

export type ImageProgress = {
  step: 'reading' | 'converting' | 'hashing' | 'receiving'
  bytesDone: number
  bytesTotal?: number | undefined
}
export type Steps = { signal?: AbortSignal | undefined; onProgress: (progress: ImageProgress) => void }
type FetchOptions = Steps & {
  /** A path, or a URL. */
  from: string
  to: string
  get?: typeof fetch | undefined
}

const isUrl = (from: string): boolean => /^https?:\/\//.test(from)
/** The last part of a path or URL, without what a URL may carry of secrets. */
export const nameOf = (from: string): string => basename(isUrl(from) ? new URL(from).pathname : from).slice(0, 300) || 'image'

export async function assertRoom(dir: string, bytes: number): Promise<void> {
  const { bavail, bsize } = await statfs(dir)
  const free = bavail * bsize - SPARE_BYTES
  if (free >= bytes) return
  throw new GodwitError('DISK_FULL', `the image needs ${bytes} bytes in the images folder, ${Math.max(0, free)} are free`)
}

/**
 * Copies what is to be imported to `to`. Gives its SHA-256 in hex. CONFIG_UNREADABLE, DISK_FULL, DISK_IO; the signal's
 * reason.
 */
export async function fetchSource({ from, to, get = fetch, signal, onProgress }: FetchOptions): Promise<string> {
  const hash = createHash('sha256')
  await using out = await open(to, 'wx', 0o600)
  await (isUrl(from) ? download(get, from, out, hash, { signal, onProgress }) : copy(from, out, hash, { signal, onProgress }))
  return hash.digest('hex')
}

async function copy(from: string, out: FileHandle, hash: Hash, { signal, onProgress }: Steps): Promise<void> {
  const found = await stat(from).catch(cause => {
    throw new GodwitError('CONFIG_UNREADABLE', `${from}: cannot be read`, { cause })
  })
  if (!found.isFile()) throw new GodwitError('CONFIG_UNREADABLE', `${from} is no file`)
  await using file = await open(from).catch(cause => {
    throw new GodwitError('CONFIG_UNREADABLE', `${from}: cannot be read`, { cause })
  })
  const buffer = Buffer.allocUnsafe(READ_BYTES)
  const zeros = Buffer.alloc(READ_BYTES)
  let room = 0
  for (let at = 0; ; ) {
    signal?.throwIfAborted()
    const { bytesRead } = await file.read(buffer, 0, READ_BYTES, at).catch(cause => {
      throw new GodwitError('DISK_IO', `${from}: cannot be read at byte ${at}`, { cause })
    })
    if (bytesRead === 0) break
    const piece = buffer.subarray(0, bytesRead)
    hash.update(piece)
    // Zeros become holes: a sparse image of 300 GB takes what it holds.
    if (!piece.equals(zeros.subarray(0, bytesRead))) {
      if (room < bytesRead) room = await roomLeft(out, READ_BYTES * 64)
      await out.write(piece, 0, bytesRead, at)
      room -= bytesRead
    }
    at += bytesRead
    onProgress({ step: 'reading', bytesDone: at, bytesTotal: found.size })
  }
  await out.truncate(found.size)
}

/** Bytes that may be written before the room is looked at again. DISK_FULL. */
async function roomLeft(out: FileHandle, wanted: number): Promise<number> {
  await assertRoom(`/proc/self/fd/${out.fd}`, wanted)
  return wanted
}

async function download(get: typeof fetch, url: string, out: FileHandle, hash: Hash, { signal, onProgress }: Steps): Promise<void> {
  const fail = (why: string, cause?: unknown) => failed(url, why, cause)
  const still = createStillness(signal)
  try {
    await receive(await connect(get, url, still.signal), { url, out, hash, onProgress, onBytes: still.moved })
  } catch (error) {
    signal?.throwIfAborted()
    if (still.signal.aborted) throw fail(`no byte came for ${STILL_MS / 1000} s`)
    throw error instanceof GodwitError ? error : fail('the download broke off', error)
  } finally {
    still.end()
  }
}

const failed = (url: string, why: string, cause?: unknown) => new GodwitError('CONFIG_UNREADABLE', `${nameOf(url)}: ${why}`, { cause })

/** Aborts with `signal`, and when moved() is not called for STILL_MS. */
function createStillness(signal: AbortSignal | undefined) {
  const still = new AbortController()
  const stop = () => still.abort(new Error('nothing came'))
  let timer = setTimeout(stop, STILL_MS)
  return {
    signal: signal ? AbortSignal.any([signal, still.signal]) : still.signal,
    moved() {
      clearTimeout(timer)
      timer = setTimeout(stop, STILL_MS)
    },
    end: () => clearTimeout(timer),
  }
}

async function connect(get: typeof fetch, url: string, signal: AbortSignal): Promise<Response> {
  const response = await get(url, { signal, redirect: 'follow' }).catch(cause => {
    signal.throwIfAborted()
    const why = /redirect/.test(String(cause?.cause)) ? 'the server redirects too often' : 'the server cannot be reached'
    throw failed(url, why, cause)
  })
  if (!response.ok || !response.body) throw failed(url, `the server answers with status ${response.status}`)
  return response
}

type Download = { url: string; out: FileHandle; hash: Hash; onBytes: () => void; onProgress: Steps['onProgress'] }

async function receive(response: Response, { url, out, hash, onBytes, onProgress }: Download): Promise<void> {
  const length = Number(response.headers.get('content-length') ?? Number.NaN)
  const bytesTotal = Number.isFinite(length) ? length : undefined
  if (bytesTotal !== undefined) await roomLeft(out, bytesTotal)
  let at = 0
  let room = 0
  for await (const piece of response.body!) {
    onBytes()
    if (room < piece.length) room = await roomLeft(out, READ_BYTES * 64)
    await out.write(piece, 0, piece.length, at)
    hash.update(piece)
    at += piece.length
    room -= piece.length
    onProgress({ step: 'reading', bytesDone: at, bytesTotal })
  }
  if (bytesTotal !== undefined && at !== bytesTotal) throw failed(url, `${at} bytes came of ${bytesTotal}`)
}

export async function formatOf(path: string): Promise<ImportFormat> {
  await using file = await open(path)
  const head = Buffer.alloc(4)
  await file.read(head, 0, 4, 0)
  return head.readUInt32BE(0) === QCOW2_MAGIC ? 'qcow2' : 'raw'
}
