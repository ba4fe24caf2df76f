// A disk as power loss sees it. Enters: writes, with and without sync. Leaves: what is there now, and what would be
// there after a power loss.
// Always holds: an agent that is killed loses nothing that was written (the kernel has it); a power loss keeps all
// synced writes and, of those behind the last sync, some first ones (LevelDB's log is one file, written in order). A
// failed sync leaves the write where it may or may not show up when the folder is opened anew, which the store does
// before its next write (ops/store.ts).
import { GodwitError } from '../../../wire/errors.ts'
import { breach, pass, say, stage } from './stage.ts'
import { type Process, pause, processNow } from './time.ts'

export type Write = { table: string; key: string; value: unknown }
type Tables = Map<string, Map<string, unknown>>
type Failing = 'refused' | 'sync'

const DELETED = Symbol('deleted')

export class Disk {
  /** What a reader of the files sees. */
  view: Tables = new Map()
  /** What a power loss leaves. */
  durable: Tables = new Map()
  /** Written and not synced, oldest first. */
  readonly pending: Write[][] = []
  /** Files by path; only their existence and text. */
  readonly files = new Map<string, string>()
  /** What becomes of the writes to come. */
  failures:
    | {
        failing: Failing
        writes: number
        /** From the first write on whose description has this. */
        from?: string
      }
    | undefined
  /** The process that has it open was refused a write. */
  refused = false
  onDurable: () => void = () => {}
  /** Counts the processes that opened it. */
  #life = 0
  #lock: Process | undefined

  open(): number {
    if (this.#lock?.alive) throw new GodwitError('STORE_LOCKED', 'open in another process')
    this.#lock = processNow()
    this.refused = false
    this.#life += 1
    return this.#life
  }

  get(table: string, key: string): unknown {
    return this.view.get(table)?.get(key)
  }

  entries(table: string, tables = this.view): [string, unknown][] {
    return [...(tables.get(table) ?? [])].sort(([a], [b]) => (a < b ? -1 : 1))
  }

  async write(writes: Write[], sync: boolean, life: number): Promise<void> {
    const label = `${sync ? 'sync' : 'write'} ${writes.map(describe).join(', ')}`
    await pass(`before ${label}`)
    await pause(processNow(), stage().diskMs())
    if (life !== this.#life) throw new GodwitError('STORE_FAILED', 'closed')
    if (this.#hidden.length > 0) this.reopened()
    const failing = this.#failing(sync, label)
    if (failing === 'refused') {
      say(`disk refuses: ${label}`)
      throw new GodwitError('STORE_FAILED', 'no space left')
    }
    if (failing === 'sync') {
      say(`sync fails: ${label}`)
      // In the file, not in what this process reads: it may show up when the store is opened anew.
      if (stage().random.chance(0.5)) this.#hidden.push(writes)
      throw new GodwitError('STORE_FAILED', 'fsync failed')
    }
    apply(this.view, writes)
    this.pending.push(writes)
    if (sync) {
      await pass(`written ${label}`)
      this.flush()
      say(`on disk: ${writes.map(describe).join(', ')}`)
    }
    await pass(`after ${label}`)
  }

  readonly #hidden: Write[][] = []

  #failing(sync: boolean, label: string): Failing | undefined {
    const { failures } = this
    if (failures?.from !== undefined) {
      if (!label.includes(failures.from)) return undefined
      delete failures.from
    }
    if (!failures || failures.writes <= 0 || (failures.failing === 'sync' && !sync)) return undefined
    failures.writes -= 1
    this.refused = true
    return failures.failing
  }

  flush(): void {
    for (const writes of this.pending.splice(0)) apply(this.durable, writes)
    this.onDurable()
  }

  /**
   * Opened anew after a failed write, or by another process: what was in the file shows up, and LevelDB's recovery
   * writes it into a table that it syncs.
   */
  reopened(): void {
    for (const writes of this.#hidden.splice(0)) {
      apply(this.view, writes)
      this.pending.push(writes)
    }
    this.flush()
  }

  powerLoss(): void {
    const all = [...this.pending.splice(0), ...this.#hidden.splice(0)]
    const kept = Math.floor(stage().random.next() * (all.length + 1))
    for (const writes of all.slice(0, kept)) apply(this.durable, writes)
    this.view = copyOf(this.durable)
  }

  /** All of it, as it is now; and back to it (a gateway's disk from an old backup). */
  snapshot(): Tables {
    return copyOf(this.view)
  }
  restore(tables: Tables): void {
    this.pending.length = this.#hidden.length = 0
    this.view = copyOf(tables)
    this.durable = copyOf(tables)
  }
}

function apply(tables: Tables, writes: Write[]): void {
  for (const { table, key, value } of writes) {
    const rows = tables.get(table) ?? new Map<string, unknown>()
    tables.set(table, rows)
    if (value === DELETED) rows.delete(key)
    else rows.set(key, value)
  }
}

const copyOf = (tables: Tables): Tables => new Map([...tables].map(([name, rows]) => [name, new Map(rows)]))

function describe({ table, key, value }: Write): string {
  const { state, side } = (value ?? {}) as { state?: string; side?: string }
  if (value === DELETED) return `${table} -${key.slice(0, 8)}`
  if (table === 'ownership') return `${side} ${state} (${key.slice(0, 6)})`
  return `${table} ${key.slice(0, 8)} ${state ?? (typeof value === 'number' ? value : '')}`
}

/** A value as it is stored: JSON, and nobody's own object. */
export const stored = (value: unknown): unknown => {
  if (value === null || value === undefined) breach('disk', 'nothing cannot be stored')
  return JSON.parse(JSON.stringify(value))
}
export const deleted = (): unknown => DELETED
