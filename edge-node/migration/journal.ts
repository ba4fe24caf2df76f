// Who owns a VM, on paper: every ownership state of every migration of this node, signed, chained and on the disk
// before what follows from it.
// Enters: states. Leaves: after a restart, the last state of each migration and what is needed to go on from it.
// Always holds: a record that is not exactly as this node wrote it is never acted on; a migration's id is used once;
// nothing that may still decide about a VM is forgotten (prune).
import { utf8 } from '../../crypto/bytes.ts'
import { hashBytes } from '../../crypto/hash.ts'
import { type SiteKeys, signMessage, verifyMessage } from '../../crypto/identity.ts'
import type { Store } from '../../ops/store.ts'
import { CertificateText, Id, MigrationId, Plan, Side } from '../../wire/control.ts'
import type { Log } from '../../wire/log.ts'
import { z } from '../../wire/schema.ts'

const TABLE = 'ownership'
const LABEL = 'godwit/1 ownership'
const KEPT_MAX = 1024
const FIRST = '0'.repeat(64)

const Body = z.object({
  version: z.literal(1),
  migrationId: MigrationId,
  vm: Id,
  side: Side,
  /** 0 for the first record of this migration and side. */
  sequence: z.number().int().nonnegative(),
  state: z.string().max(32),
  epoch: z.number().int().nonnegative(),
  plan: Plan,
  /** Of the other site: whom to ask, and whose key to meet with. */
  peerCertificate: CertificateText,
  /**
   * Of this site, as the migration began with it: the handshakes of later lives must show the same. Absent in older
   * records.
   */
  ownCertificate: CertificateText.optional(),
  manifestHash: z.string().max(64).optional(),
  /**
   * RELINQUISHED only, by a later life of the agent: no earlier one has met the target with an attempt as high as this.
   */
  attempt: z.number().int().positive().optional(),
  /**
   * RECLAIMED only, without the target's word: the root's statement that it cannot run the VM (crypto/fencing.ts),
   * base64.
   */
  fencing: z.string().max(2048).optional(),
  /** Unix ms; for people. */
  at: z.number(),
  /** BLAKE2b-256 of the record before (its signature included), hex. */
  previous: z.string().length(64),
})
const Signed = Body.extend({ signature: z.string().max(128) })

export type OwnershipRecord = z.infer<typeof Signed>
type RecordFacts = { manifestHash?: string | undefined; attempt?: number | undefined; fencing?: string | undefined }
type RecordState = (state: string, epoch: number, facts?: RecordFacts) => Promise<void>

export type Journal = {
  /** For one side of one migration; continues after `last` when there is one. */
  recorder(plan: Plan, side: 'source' | 'target', peerCertificate: Uint8Array, last?: OwnershipRecord): RecordState
  /** Whether this node has taken part in this migration, on this side, in any life. */
  knows(migrationId: string, side: 'source' | 'target'): Promise<boolean>
  /**
   * The last record of each migration and side, oldest first; what does not verify is left out, and said in the log.
   */
  last(): Promise<OwnershipRecord[]>
  /** Forgets the oldest migrations beyond KEPT_MAX of those whose last record `mayGo`. */
  prune(mayGo: (last: OwnershipRecord) => boolean): Promise<void>
  /**
   * Whether the last reading found records that are not as this node wrote them: then nothing follows from there being
   * no record.
   */
  readonly isAltered: boolean
  /** The same with all their records, oldest first. Changes nothing. */
  chains(): Promise<OwnershipRecord[][]>
}

type JournalOptions = {
  store: Store
  keys: SiteKeys
  /** This site's certificate now. */
  certificate?: () => Uint8Array
  /** Unix ms. */
  now: () => number
  log: Log
}

export function createJournal({ store, keys, certificate, now, log }: JournalOptions): Journal {
  const canonical = (value: object) => utf8(JSON.stringify(value, sortedKeys))
  let isAltered = false
  return {
    get isAltered() {
      return isAltered
    },
    recorder(plan, side, peerCertificate, last) {
      let sequence = last ? last.sequence + 1 : 0
      let previous = last ? hashOf(last) : FIRST
      let manifestHash = last?.manifestHash
      const own = last ? last.ownCertificate : certificate && Buffer.from(certificate()).toString('base64')
      return async (state, epoch, facts) => {
        manifestHash = facts?.manifestHash ?? manifestHash
        const body = {
          version: 1 as const,
          migrationId: plan.migrationId,
          vm: plan.vm,
          side,
          sequence,
          state,
          epoch,
          plan,
          peerCertificate: Buffer.from(peerCertificate).toString('base64'),
          ...(own === undefined ? {} : { ownCertificate: own }),
          ...(manifestHash === undefined ? {} : { manifestHash }),
          ...(facts?.attempt === undefined ? {} : { attempt: facts.attempt }),
          ...(facts?.fencing === undefined ? {} : { fencing: facts.fencing }),
          at: now(),
          previous,
        }
        const signature = Buffer.from(signMessage(keys.signSecret, LABEL, canonical(body))).toString('base64')
        const record: OwnershipRecord = { ...body, signature }
        await store.put(TABLE, keyOf(record), record, { sync: true })
        sequence += 1
        previous = hashOf(record)
      }
    },
    knows: async (migrationId, side) => (await store.get(TABLE, keyOf({ migrationId, side, sequence: 0 }))) !== undefined,
    chains: soundChains,
    last: async () => (await soundChains()).map(chain => chain.at(-1)!),
    async prune(mayGo) {
      const over = (await soundChains()).filter(chain => mayGo(chain.at(-1)!))
      await remove(over.slice(0, Math.max(0, over.length - KEPT_MAX)))
    },
  }

  async function soundChains(): Promise<OwnershipRecord[][]> {
    const chains = new Map<string, OwnershipRecord[]>()
    isAltered = false
    for await (const [key, value] of store.entries<unknown>(TABLE)) {
      const parsed = Signed.safeParse(value)
      const chain = key.slice(0, key.lastIndexOf('/'))
      if (!parsed.success) {
        isAltered = true
        log.error('ownership record is unreadable', { key })
      } else chains.set(chain, [...(chains.get(chain) ?? []), parsed.data])
    }
    const sound = [...chains.values()].flatMap(chain => {
      const isSound = chain.every(
        (record, i) => verifies(record) && record.sequence === i && record.previous === (i === 0 ? FIRST : hashOf(chain[i - 1]!)),
      )
      if (!isSound) {
        isAltered = true
        log.error('ownership records were altered: ignoring them', { migrationId: chain[0]!.migrationId })
      }
      return isSound ? [chain] : []
    })
    return sound.sort((a, b) => a[0]!.at - b[0]!.at)
  }
  function verifies({ signature, ...body }: OwnershipRecord): boolean {
    return verifyMessage(keys.signPublic, LABEL, canonical(body), new Uint8Array(Buffer.from(signature, 'base64')))
  }
  async function remove(chains: OwnershipRecord[][]): Promise<void> {
    const writes = chains.flat().map(record => ({ type: 'delete' as const, table: TABLE, key: keyOf(record) }))
    if (writes.length > 0) await store.batch(writes)
  }
  function hashOf(record: OwnershipRecord): string {
    return Buffer.from(hashBytes(canonical(record))).toString('hex')
  }
}

/** JSON.stringify's replacer that sorts the keys of every object: one value, one text. */
const sortedKeys = (_: string, value: unknown): unknown =>
  typeof value === 'object' && value !== null && !Array.isArray(value)
    ? Object.fromEntries(Object.entries(value).sort(([a], [b]) => (a < b ? -1 : 1)))
    : value

const keyOf = ({ migrationId, side, sequence }: Pick<OwnershipRecord, 'migrationId' | 'side' | 'sequence'>): string =>
  `${migrationId}/${side}/${String(sequence).padStart(4, '0')}`
