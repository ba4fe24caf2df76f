// What the guest says on its serial line, read from QEMU's own log of it at every site: heard also while no agent lives.
// Enters: folders of sites. Leaves: a witness of beats and audits. Always holds: bytes are taken in the order in which they were written (one owner at a time:
// the other sites are looked at before the one that spoke last); a log whose folder has gone is read to its end.
import { type FileHandle, open } from 'node:fs/promises'
import { join } from 'node:path'
import { type BeatSummary, createWitness, type GuestRecord } from '../../../guest/beats.ts'
import { sleep } from '../../../ops/deadline.ts'
import { GodwitError } from '../../../wire/errors.ts'

const LOOK_MS = 25
const CHUNK_BYTES = 256 * 1024

type Log = { site: string; path: string; file: FileHandle | undefined; inode: number; at: number }

export type Serial = AsyncDisposable & {
  summary(): BeatSummary
  next<K extends GuestRecord['kind']>(kind: K, ms: number): Promise<Extract<GuestRecord, { kind: K }>>
  /** The site whose QEMU wrote last. */
  speaker(): string
  /** What was written around each change of site. */
  seams(): string[]
}

export function readSerial(sites: { name: string; dir: string }[], vm: string): Serial {
  const witness = createWitness()
  const stop = new AbortController()
  const waiting = new Set<(record: GuestRecord) => void>()
  const logs = sites.map(
    ({ name, dir }): Log => ({ site: name, path: join(dir, 'state', 'vms', vm, 'serial.log'), file: undefined, inode: 0, at: 0 }),
  )
  let speaker = ''
  let tail = ''
  const seams: string[] = []

  const read = async (log: Log): Promise<Buffer> => {
    const { bytesRead, buffer } = await log.file!.read(Buffer.allocUnsafe(CHUNK_BYTES), 0, CHUNK_BYTES, log.at)
    log.at += bytesRead
    return buffer.subarray(0, bytesRead)
  }
  /** All that is there now; then the log that has taken its place, if one has. */
  const drain = async (log: Log): Promise<Buffer> => {
    const parts: Buffer[] = []
    const rest = async () => {
      for (let part = await read(log); part.length > 0; part = await read(log)) parts.push(part)
    }
    const found = await open(log.path, 'r').catch(() => undefined)
    const inode = found ? (await found.stat()).ino : 0
    // A fresh start of the VM in the same folder empties the log.
    if (log.file && (await log.file.stat()).size < log.at) log.at = 0
    if (log.file) await rest()
    if (found && inode !== log.inode) {
      await log.file?.close()
      Object.assign(log, { file: found, inode, at: 0 })
      await rest()
    } else await found?.close()
    return Buffer.concat(parts)
  }
  const tick = async () => {
    const order = [...logs].sort((a, b) => Number(a.site === speaker) - Number(b.site === speaker))
    const heard: { site: string; bytes: Buffer }[] = []
    for (const log of order) heard.push({ site: log.site, bytes: await drain(log) })
    for (const { site, bytes } of heard.reverse()) {
      if (bytes.length === 0) continue
      const text = bytes.toString('latin1')
      if (site !== speaker) seams.push(`${speaker}: ${JSON.stringify(tail)} | ${site}: ${JSON.stringify(text.slice(0, 60))}`)
      speaker = site
      tail = (tail + text).slice(-60)
      for (const record of witness.push(site, text, performance.now())) for (const take of waiting) take(record)
    }
  }
  const reading = (async () => {
    while (!stop.signal.aborted) {
      await tick().catch(() => {})
      await sleep(LOOK_MS, stop.signal).catch(() => {})
    }
  })()
  return {
    summary: () => witness.summary(),
    speaker: () => speaker,
    seams: () => [...seams],
    next: <K extends GuestRecord['kind']>(kind: K, ms: number) =>
      new Promise<Extract<GuestRecord, { kind: K }>>((resolve, reject) => {
        const done = () => {
          clearTimeout(timer)
          waiting.delete(take)
        }
        const timer = setTimeout(() => {
          done()
          reject(new GodwitError('TIMEOUT', `the guest did not say '${kind}' within ${ms / 1000} s`))
        }, ms)
        const take = (record: GuestRecord) => {
          if (record.kind !== kind) return
          done()
          resolve(record as Extract<GuestRecord, { kind: K }>)
        }
        waiting.add(take)
      }),
    async [Symbol.asyncDispose]() {
      stop.abort()
      await reading
      for (const { file } of logs) await file?.close()
    },
  }
}
