// Observes the guest from outside, as its users would: reads its serial console at every site and records the time of
// each beat.

import { type BeatSummary, createWitness, type GuestRecord, type Silence } from '../../guest/beats.ts'
import { sleep } from '../../ops/deadline.ts'
import { requestUpgrade } from '../../ops/http-client.ts'
import { createRecordWaiters } from './record-waiters.ts'

export type Observer = {
  summary(): BeatSummary
  silenceBetween(fromMs: number, toMs: number): Silence | undefined
  /** The next record of this kind from now on. */
  next<K extends GuestRecord['kind']>(kind: K, ms: number): Promise<Extract<GuestRecord, { kind: K }>>
  /** Writes a line to the guest's console, at whichever site it is. */
  type(line: string): void
  close(): void
}

const RETRY_MS = 25

/** `consoles`: name of each site and the socket of its node. */
export function observe(vm: string, consoles: { site: string; socketPath: string }[]): Observer {
  const witness = createWitness()
  const stop = new AbortController()
  const writers = new Map<string, (text: string) => void>()
  const waiters = createRecordWaiters()

  const listen = async (site: string, socketPath: string) => {
    // replay=0: old console output would count as beats received now.
    const socket = await requestUpgrade({ socketPath, path: `/v1/vms/${vm}/console?replay=0`, signal: stop.signal })
    writers.set(site, text => void socket.write(text))
    stop.signal.addEventListener('abort', () => socket.destroy(), { once: true })
    try {
      for await (const chunk of socket) {
        const records = witness.push(site, (chunk as Buffer).toString('latin1'), performance.now())
        for (const record of records) waiters.give(record)
      }
    } finally {
      writers.delete(site)
    }
  }
  const follow = async (site: string, socketPath: string) => {
    while (!stop.signal.aborted) {
      await listen(site, socketPath).catch(() => {})
      await sleep(RETRY_MS, stop.signal).catch(() => {})
    }
  }
  for (const { site, socketPath } of consoles) void follow(site, socketPath)
  return {
    summary: () => witness.summary(),
    silenceBetween: (from, to) => witness.silenceBetween(from, to),
    type: line => {
      for (const write of writers.values()) write(`${line}\n`)
    },
    next: waiters.next,
    close: () => stop.abort(),
  }
}
