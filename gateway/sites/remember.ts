// Stores the last reports of sites. Enters: names of sites with a new report. Leaves: writes, at most one a second for
// each site. Always holds: a site that reports all the time causes one write a second; its last report is written
// before close() resolves.
import type { Log } from '../../wire/log.ts'
import type { Records } from '../store/records.ts'
import type { Sites } from './sites.ts'

const SAVE_EVERY_MS = 1_000

export function rememberSites({ sites, records, log, everyMs = SAVE_EVERY_MS }: RememberOptions) {
  const waiting = new Map<string, NodeJS.Timeout>()
  const writing = new Set<Promise<void>>()
  const save = (site: string) => {
    const memory = sites.memory(site)
    if (!memory) return
    const written = records.saveSite(memory).catch(error => log.warn('site record could not be written', { site, error }))
    writing.add(written)
    written.finally(() => writing.delete(written))
  }
  return {
    changed(site: string): void {
      if (waiting.has(site)) return
      const timer = setTimeout(() => {
        waiting.delete(site)
        save(site)
      }, everyMs)
      waiting.set(site, timer)
    },
    async close(): Promise<void> {
      for (const [site, timer] of waiting) {
        clearTimeout(timer)
        save(site)
      }
      waiting.clear()
      await Promise.all(writing)
    },
  }
}

type RememberOptions = { sites: Pick<Sites, 'memory'>; records: Pick<Records, 'saveSite'>; log: Log; everyMs?: number }
