// What the guest says on its serial line, read from QEMU's own log of it at every site: heard also while no agent
// lives.
// Enters: folders of sites. Leaves: a witness of beats and audits. Always holds: bytes are taken in the order in which
// they were written (one owner at a time: the other sites are looked at before the one that spoke last); a log whose
// folder has gone is read to its end. QEMU writes a character twice into its log when the agent's end of the line is
// full for a moment (qemu_chr_write logs what it could not write, and again when it could): such a line is mended only
// where it then is the very beat that was due, so no lost or doubled beat hides behind it.

import { type FileHandle, open } from 'node:fs/promises'
import { join } from 'node:path'
import { createRecordWaiters } from '../../../cli/demo/record-waiters.ts'
import { type BeatSummary, createWitness, type GuestRecord, parseGuestLine } from '../../../guest/beats.ts'
import { sleep } from '../../../ops/deadline.ts'

const LOOK_MS = 25
const CHUNK_BYTES = 256 * 1024
const KEPT_CHARACTERS = 1024 * 1024

type Log = { site: string; path: string; file: FileHandle | undefined; inode: number; at: number }

export type Serial = AsyncDisposable & {
  summary(): BeatSummary
  next<K extends GuestRecord['kind']>(kind: K, ms: number): Promise<Extract<GuestRecord, { kind: K }>>
  /** The site whose QEMU wrote last. */
  speaker(): string
  /** For messages: what was written around each change of site, and around each beat that is missing. */
  seams(): string[]
}

/** Takes out a character that was written twice, where the line makes sense only without it. */
function createMender(): (line: string) => string {
  let last = { sequence: 0, guestMs: 0 }
  const isDue = (line: string) => {
    const parsed = parseGuestLine(line)
    return (
      parsed.kind === 'beat' &&
      parsed.sequence === last.sequence + 1 &&
      parsed.guestMs >= last.guestMs &&
      parsed.guestMs < last.guestMs + 60_000
    )
  }
  const without = (line: string) =>
    [...line].flatMap((character, at) => (line[at + 1] === character ? [line.slice(0, at) + line.slice(at + 1)] : []))
  return line => {
    const { kind } = parseGuestLine(line)
    const isRight = kind === 'beat' ? isDue(line) : kind !== 'other'
    const once = isRight ? [] : without(line)
    const fits = kind === 'beat' || line.startsWith('B') ? isDue : (text: string) => !['other', 'beat'].includes(parseGuestLine(text).kind)
    const mended = isRight ? line : (once.find(fits) ?? once.flatMap(without).find(fits) ?? line)
    const parsed = parseGuestLine(mended)
    if (parsed.kind === 'beat') last = parsed
    return mended
  }
}

/** The text between two beats that do not follow each other. */
function gaps(text: string): string[] {
  const beats = [...text.matchAll(/BEAT (\d+) \d+\n/g)]
  return beats.flatMap((beat, at) => {
    const after = beats[at + 1]
    if (!after || Number(after[1]) === Number(beat[1]) + 1) return []
    return [`gap: ${JSON.stringify(text.slice(beat.index, after.index + after[0].length))}`]
  })
}

/** `lookMs`: how often the logs are read. */
export function readSerial(sites: { name: string; dir: string }[], vm: string, lookMs = LOOK_MS): Serial {
  const witness = createWitness()
  const stop = new AbortController()
  const waiters = createRecordWaiters()
  const logs = sites.map(
    ({ name, dir }): Log => ({ site: name, path: join(dir, 'state', 'vms', vm, 'serial.log'), file: undefined, inode: 0, at: 0 }),
  )
  let speaker = ''
  let half = ''
  let all = ''
  const mend = createMender()
  const seams: string[] = []

  const read = async (log: Log): Promise<Buffer> => {
    const { bytesRead, buffer } = await log.file!.read(Buffer.allocUnsafe(CHUNK_BYTES), 0, CHUNK_BYTES, log.at)
    log.at += bytesRead
    return buffer.subarray(0, bytesRead)
  }
  /** All that is there now; then, as a second text, that of a QEMU started since, if one has been. */
  const drain = async (log: Log): Promise<string[]> => {
    const texts: string[] = []
    const rest = async () => {
      const parts: Buffer[] = []
      for (let part = await read(log); part.length > 0; part = await read(log)) parts.push(part)
      texts.push(Buffer.concat(parts).toString('latin1'))
    }
    const found = await open(log.path, 'r').catch(() => undefined)
    const inode = found ? (await found.stat()).ino : 0
    // A fresh start of the VM in the same folder empties the log.
    if (log.file && (await log.file.stat()).size < log.at) {
      log.at = 0
      texts.push('')
    }
    if (log.file) await rest()
    if (found && inode !== log.inode) {
      await log.file?.close()
      Object.assign(log, { file: found, inode, at: 0 })
      await rest()
    } else await found?.close()
    return texts
  }
  const push = (site: string, text: string) => {
    for (const record of witness.push(site, text, performance.now())) waiters.give(record)
  }
  const hear = (site: string, text: string) => {
    if (site !== speaker) {
      seams.push(`${speaker}: ${JSON.stringify(all.slice(-60))} | ${site}: ${JSON.stringify(text.slice(0, 60))}`)
      // The rest of a line that the VM was in the middle of when it moved.
      push(speaker, half)
      half = ''
      speaker = site
    }
    const lines = (half + text).split('\n')
    half = lines.pop() ?? ''
    for (const line of lines) push(site, `${mend(line)}\n`)
    all = (all + text).slice(-KEPT_CHARACTERS)
  }
  const tick = async () => {
    const order = [...logs].sort((a, b) => Number(a.site === speaker) - Number(b.site === speaker))
    const heard: { site: string; texts: string[] }[] = []
    for (const log of order) heard.push({ site: log.site, texts: await drain(log) })
    for (const { site, texts } of heard.reverse())
      for (const [at, text] of texts.entries()) {
        // A QEMU that lost power in the middle of a line never ends it.
        if (at > 0 && site === speaker) half = ''
        if (text !== '') hear(site, text)
      }
  }
  const reading = (async () => {
    while (!stop.signal.aborted) {
      await tick().catch(() => {})
      await sleep(lookMs, stop.signal).catch(() => {})
    }
  })()
  return {
    summary: () => witness.summary(),
    speaker: () => speaker,
    seams: () => [...seams, ...gaps(all)],
    next: waiters.next,
    async [Symbol.asyncDispose]() {
      stop.abort()
      await reading
      for (const { file } of logs) await file?.close()
    },
  }
}
