// The Merkle root of a file's content (chunk-tree.ts), remembered by what the file is: device, inode, size, times.
// Enters: open files. Leaves: roots.
// Always holds: a root belongs to a file as it is, never to a name; a file that changes while it is read has none; who
// asks for the same file at once gets the same reading.
import { type BigIntStats, constants, fstatSync } from 'node:fs'
import { open, readFile, rename, writeFile } from 'node:fs/promises'
import { sleep } from '../../ops/deadline.ts'
import { GodwitError } from '../../wire/errors.ts'
import { hashFile } from './hash-file.ts'

/** Which file it is, and as of when. Decimal numbers: they have 64 bits. */
export type FileIdentity = { dev: string; ino: string; bytes: number; mtimeNs: string; ctimeNs: string }

export const identityOf = ({ dev, ino, size, mtimeNs, ctimeNs }: BigIntStats): FileIdentity => ({
  ...{ dev: String(dev), ino: String(ino), bytes: Number(size) },
  ...{ mtimeNs: String(mtimeNs), ctimeNs: String(ctimeNs) },
})

export const isSameIdentity = (a: FileIdentity, b: FileIdentity): boolean => keyOf(a) === keyOf(b)

const keyOf = ({ dev, ino, bytes, mtimeNs, ctimeNs }: FileIdentity): string => [dev, ino, bytes, mtimeNs, ctimeNs].join(' ')

export type HashOptions = {
  signal?: AbortSignal | undefined
  /** Bytes that are done, of all that this call is about. */
  onProgress?: ((progress: HashProgress) => void) | undefined
}
export type HashProgress = {
  file: string
  bytesDone: number
  bytesTotal: number
  /** It is not read here, it comes from the other site. */
  phase?: 'images' | undefined
}

export type FileDigests = {
  /**
   * The root of what `fd` is open on, in hex. PREFLIGHT_FILE_CHANGED when it changes all the time; the signal's reason.
   */
  root(fd: number, name: string, options?: { signal?: AbortSignal | undefined; onProgress?: (doneBytes: number) => void }): Promise<string>
  /** What the root of this file, as it was then, is known to have been. */
  known(identity: FileIdentity): Promise<string | undefined>
  /** The root of a file that somebody else has found, as of this identity. */
  learn(identity: FileIdentity, root: string): Promise<void>
  /** Ends what is being read. */
  close(): Promise<void>
}

type Job = { key: string; root: Promise<string>; stop: AbortController; waiting: number; listeners: Set<(doneBytes: number) => void> }

const MAX_CACHED = 1024
const HASHED_AT_ONCE = 2
const TRIES = 3
/** A file system gives two writes within one tick of the kernel's clock the same time. */
const TICK_MS = 20

/** Roots of files, remembered in `cacheFile`. Who asks for the same file at once gets the same reading. */
export function createFileDigests(cacheFile: string): FileDigests {
  const cache = createCache(cacheFile)
  const jobs = new Map<string, Job>()
  const slots = createSemaphore(HASHED_AT_ONCE)

  /** Also those that nobody waits for, until their threads have ended. */
  const all = new Set<Job>()
  const forget = (job: Job) => {
    if (jobs.get(job.key) === job) jobs.delete(job.key)
  }
  const begin = (key: string, fd: number, { size, blocks }: BigIntStats): Job => {
    const stop = new AbortController()
    const listeners: Job['listeners'] = new Set()
    const tell = (doneBytes: number) => {
      for (const listener of listeners) listener(doneBytes)
    }
    const read = async () => {
      // A descriptor of its own: whoever asked may leave.
      const file = await open(`/proc/self/fd/${fd}`, constants.O_RDONLY)
      try {
        return await slots.within(stop.signal, () =>
          hashFile({ fd: file.fd, bytes: Number(size), isSparse: blocks * 512n < size }, { signal: stop.signal, onProgress: tell }),
        )
      } finally {
        await file.close()
      }
    }
    const job: Job = { key, root: read(), stop, waiting: 0, listeners }
    jobs.set(key, job)
    all.add(job)
    const over = () => {
      forget(job)
      all.delete(job)
    }
    job.root.then(over, over)
    return job
  }
  const join = async (job: Job, signal: AbortSignal | undefined, onProgress: (doneBytes: number) => void): Promise<string> => {
    job.waiting += 1
    job.listeners.add(onProgress)
    const left = Promise.withResolvers<never>()
    const leave = () => left.reject(signal?.reason)
    signal?.addEventListener('abort', leave, { once: true })
    if (signal?.aborted) leave()
    try {
      return await Promise.race([job.root, left.promise])
    } finally {
      signal?.removeEventListener('abort', leave)
      job.listeners.delete(onProgress)
      job.waiting -= 1
      if (job.waiting === 0) {
        forget(job)
        job.stop.abort(new GodwitError('MIGRATION_CANCELLED', 'no request needs this file any more'))
      }
    }
  }
  return {
    async root(fd, name, { signal, onProgress = () => {} } = {}) {
      for (let tries = 0; tries < TRIES; tries++) {
        const found = fstatSync(fd, { bigint: true })
        const key = keyOf(identityOf(found))
        const cached = await cache.get(key)
        if (cached !== undefined) return cached
        if (Date.now() - Number(found.ctimeNs / 1_000_000n) < TICK_MS) await sleep(TICK_MS, signal)
        const root = await join(jobs.get(key) ?? begin(key, fd, found), signal, onProgress)
        if (keyOf(identityOf(fstatSync(fd, { bigint: true }))) !== key) continue
        await cache.put(key, root)
        return root
      }
      throw new GodwitError('PREFLIGHT_FILE_CHANGED', `${name} changed while it was read`)
    },
    known: identity => cache.get(keyOf(identity)),
    learn: (identity, root) => cache.put(keyOf(identity), root),
    async close() {
      for (const { stop } of all) stop.abort(new GodwitError('SITE_OFFLINE', 'the node is shutting down'))
      await Promise.allSettled([...all].map(({ root }) => root))
    },
  }
}

/** The oldest go first. */
function createCache(cacheFile: string) {
  let known: Promise<Map<string, string>> | undefined
  let written: Promise<unknown> = Promise.resolve()
  const load = async () => {
    try {
      return new Map<string, string>(JSON.parse(await readFile(cacheFile, 'utf8')))
    } catch {
      return new Map<string, string>() // a cache: absent or damaged, it is made anew
    }
  }
  const write = async (cache: Map<string, string>) => {
    await writeFile(`${cacheFile}.new`, JSON.stringify([...cache]), { mode: 0o600 })
    await rename(`${cacheFile}.new`, cacheFile)
  }
  return {
    async get(key: string): Promise<string | undefined> {
      known ??= load()
      return (await known).get(key)
    },
    async put(key: string, root: string): Promise<void> {
      known ??= load()
      const cache = await known
      cache.set(key, root)
      for (const oldest of cache.keys()) if (cache.size > MAX_CACHED) cache.delete(oldest)
      written = written.then(() => write(cache)).catch(() => {}) // a disk that refuses costs a reading later
      await written
    },
  }
}

function createSemaphore(count: number) {
  let free = count
  const queue: (() => void)[] = []
  return {
    async within<T>(signal: AbortSignal, work: () => Promise<T>): Promise<T> {
      if (free === 0) await new Promise<void>(resolve => queue.push(resolve))
      else free -= 1
      try {
        signal.throwIfAborted()
        return await work()
      } finally {
        const next = queue.shift()
        if (next) next()
        else free += 1
      }
    },
  }
}

/** Bytes over several files, one after the other. */
export function progressOver(files: readonly { bytes: number }[], onProgress: HashOptions['onProgress']) {
  const bytesTotal = files.reduce((sum, { bytes }) => sum + bytes, 0)
  let before = 0
  let at = 0
  return {
    of: (file: string) => (doneBytes: number) => onProgress?.({ file, bytesDone: before + doneBytes, bytesTotal }),
    next() {
      before += files[at++]?.bytes ?? 0
    },
  }
}
