// The observer outside the guest: the serial logs that QEMU writes at both ends, read every few ms, in the same way for
// every variant (an agent in between would add its own delays). Enters: paths of the logs. Leaves: records with times,
// gaps, the guest's work.
import { type FileHandle, open, stat } from 'node:fs/promises'
import { createWitness, type GuestRecord, type Witness } from '../../guest/beats.ts'
import { GodwitError } from '../../wire/errors.ts'

const LOOK_MS = 4
const CHUNK_BYTES = 65_536

type Work = { atMs: number; units: number }
export type Watch = Disposable & {
  witness: Witness
  /** The first record of this kind at this console. */
  until(kind: GuestRecord['kind'], console: string, ms: number): Promise<GuestRecord>
  /** The work that the guest reported, and the time of reading. */
  work(): readonly Work[]
  /** How long the guest's durable writes to its disk took, and the time of reading. */
  writes(): readonly { atMs: number; us: number }[]
}

/** `logs`: console name to path; the observer waits for a file that does not exist yet. */
export function watchLogs(logs: Record<string, string>): Watch {
  const witness = createWitness()
  const work: Work[] = []
  const writes: { atMs: number; us: number }[] = []
  const firsts = new Map<string, GuestRecord>()
  const stop = new AbortController()
  const take = (console: string, text: string) => {
    for (const record of witness.push(console, text, performance.now())) {
      const key = `${record.kind} ${console}`
      if (!firsts.has(key)) firsts.set(key, record)
      if (record.kind === 'work') work.push({ atMs: record.atMs, units: record.writes + record.audited })
      if (record.kind === 'wrote') writes.push({ atMs: record.atMs, us: record.us })
    }
  }
  for (const [console, path] of Object.entries(logs)) void follow(path, text => take(console, text), stop.signal)
  return {
    witness,
    work: () => work,
    writes: () => writes,
    async until(kind, console, ms) {
      const end = performance.now() + ms
      for (;;) {
        const found = firsts.get(`${kind} ${console}`)
        if (found) return found
        if (performance.now() > end)
          throw new GodwitError('TIMEOUT', `the guest did not print '${kind}' at ${console} within ${ms / 1000} s`)
        await pause()
      }
    },
    [Symbol.dispose]: () => stop.abort(),
  }
}

const pause = () => new Promise(resolve => setTimeout(resolve, LOOK_MS))

/** A VM that comes back has a new log. */
async function isReplaced(file: FileHandle, path: string, readBytes: number): Promise<boolean> {
  const [open, named] = await Promise.all([file.stat(), stat(path).catch(() => undefined)])
  return named === undefined || named.ino !== open.ino || named.size < readBytes
}

async function follow(path: string, take: (text: string) => void, signal: AbortSignal): Promise<void> {
  const buffer = Buffer.alloc(CHUNK_BYTES)
  while (!signal.aborted) {
    const file = await open(path).catch(() => undefined)
    if (!file) {
      await pause()
      continue
    }
    try {
      for (let at = 0; !signal.aborted; ) {
        const { bytesRead } = await file.read(buffer, 0, CHUNK_BYTES, at)
        at += bytesRead
        if (bytesRead > 0) take(buffer.toString('latin1', 0, bytesRead))
        else if (await isReplaced(file, path, at)) break
        else await pause()
      }
    } finally {
      await file.close()
    }
  }
}

/** Units of work a second between two moments, or undefined with too few records. */
export function workRate(work: readonly Work[], fromMs: number, toMs: number): number | undefined {
  const within = work.filter(({ atMs }) => atMs >= fromMs && atMs <= toMs)
  const [first, last] = [within[0], within.at(-1)]
  if (!first || !last || last.atMs - first.atMs < 300) return undefined
  return ((last.units - first.units) * 1000) / (last.atMs - first.atMs)
}
