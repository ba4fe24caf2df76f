// The ownership records of a site as they stand on its disk: read from a copy of its store (LevelDB belongs to one
// process; records are synced, so a copy has them), checked link by link with the site's own key. Nothing of the agent
// is asked.
import { cp, mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createJournal, type OwnershipRecord } from '../../../edge-node/migration/journal.ts'
import { highestEpoch } from '../../../edge-node/registry/records.ts'
import { readKeys } from '../../../identity/load.ts'
import { createLog } from '../../../ops/log.ts'
import { openStore, type Store } from '../../../ops/store.ts'

const TRIES = 5

export type SiteRecords = { chains: OwnershipRecord[][]; epoch: number /** What does not verify. */; unsound: string[] }

export async function readRecords(siteDir: string, vm: string): Promise<SiteRecords> {
  const keys = await readKeys(join(siteDir, 'site.keys'))
  return await withCopy(join(siteDir, 'state', 'store'), async store => {
    const unsound: string[] = []
    const log = createLog({ format: 'text', write: line => void unsound.push(line) })
    const chains = await createJournal({ store, keys, now: Date.now, log }).chains()
    return { chains: chains.filter(([first]) => first!.vm === vm), epoch: await highestEpoch(store, vm), unsound }
  })
}

/** A live store may be in the middle of a write: then the copy is taken again. */
async function withCopy<T>(path: string, use: (store: Store) => Promise<T>): Promise<T> {
  const folder = await mkdtemp(join(tmpdir(), 'godwit-records-'))
  try {
    for (let tried = 1; ; tried++) {
      const copy = join(folder, String(tried))
      try {
        await cp(path, copy, { recursive: true, filter: name => !name.endsWith('/LOCK') })
        const store = await openStore(copy)
        try {
          return await use(store)
        } finally {
          await store.close()
        }
      } catch (error) {
        if (tried === TRIES) throw error
      }
    }
  } finally {
    await rm(folder, { recursive: true, force: true })
  }
}

export const statesOf = (chain: OwnershipRecord[] | undefined): string[] => chain?.map(({ state }) => state) ?? []
