// Durable state on this host: tables of JSON values in one LevelDB folder (the only importer of `level`). Enters:
// table, key, JSON value (not null). Leaves: the same value, also after a crash if it was written with `sync`. Always
// holds: one process per folder (STORE_LOCKED); a `sync` write is on disk when its promise resolves, so a message that
// depends on it may be sent, and no failure of another write undoes it; any other failure is STORE_FAILED (the write
// may be on disk or not), and a damaged folder is never repaired silently.
import { mkdir } from 'node:fs/promises'
import { Level } from 'level'
import { GodwitError } from '../wire/errors.ts'
import type { Log } from '../wire/log.ts'
import { sleep } from './deadline.ts'

const LOCK_POLL_MS = 100
/** How long a starting node or gateway waits for an earlier process that is ending, ms. */
export const LOCKED_MS = 5_000

type WriteOptions = { sync?: boolean }
type StoreWrite = { type: 'put'; table: string; key: string; value: unknown } | { type: 'delete'; table: string; key: string }

export type Store = {
  get<T>(table: string, key: string): Promise<T | undefined>
  put(table: string, key: string, value: unknown, options?: WriteOptions): Promise<void>
  delete(table: string, key: string, options?: WriteOptions): Promise<void>
  /** All entries of a table in order of their keys, from a snapshot at the start of the iteration. */
  entries<T>(table: string): AsyncIterable<[key: string, value: T]>
  /** All or nothing. */
  batch(writes: StoreWrite[], options?: WriteOptions): Promise<void>
  close(): Promise<void>
}

// The keys of a table lie between `table:` and `table;` (the next character), so ranges of tables never overlap.
const TABLE = /^[a-z0-9-]{1,32}$/
const keyOf = (table: string, key: string): string => {
  if (!TABLE.test(table)) throw new TypeError(`'${table}' is no table name`)
  if (key.length === 0 || key.length > 512) throw new TypeError(`a key of ${key.length} characters`)
  return `${table}:${key}`
}

/**
 * Opens (and creates) the folder. `onBroken`: a write has failed, and it is unknown how much of it is on disk.
 * `lockedMs`: how long to wait for another process that has it open and may be ending, ms (default 0). STORE_LOCKED
 * after that; STORE_FAILED, with a hint, if it cannot be read.
 */
export async function openStore(
  path: string,
  { log, onBroken, lockedMs = 0 }: { log?: Log; onBroken?: ((error: GodwitError) => void) | undefined; lockedMs?: number } = {},
): Promise<Store> {
  let level: Level<string, string>
  try {
    await mkdir(path, { recursive: true, mode: 0o700 })
    level = new Level<string, string>(path, { valueEncoding: 'utf8' })
    await openUnlocked(level, lockedMs, () => log?.info('store is locked by another process; waiting', { path, ms: lockedMs }))
  } catch (error) {
    throw openingError(error, path)
  }
  log?.debug('store open', { path })
  const failed = (what: string, cause: unknown) => new GodwitError('STORE_FAILED', `${path}: ${what}: ${deepest(cause)}`, { cause })
  const write = createWriter(level, cause => {
    const error = failed('write', cause)
    onBroken?.(error)
    return error
  })
  return {
    async get<T>(table: string, key: string) {
      try {
        await write.reopened()
        const text = await level.get(keyOf(table, key))
        return text === undefined ? undefined : (JSON.parse(text) as T)
      } catch (error) {
        throw error instanceof TypeError ? error : failed(`read ${table}`, error)
      }
    },
    put: async (table, key, value, { sync = false } = {}) => await write.all([put(table, key, value)], sync),
    delete: async (table, key, { sync = false } = {}) => await write.all([del(table, key)], sync),
    async *entries<T>(table: string) {
      const first = keyOf(table, ' ').slice(0, -1)
      try {
        await write.reopened()
        for await (const [key, text] of level.iterator({ gte: first, lt: `${table};` }))
          yield [key.slice(first.length), JSON.parse(text) as T]
      } catch (error) {
        throw failed(`list ${table}`, error)
      }
    },
    batch: async (writes, { sync = false } = {}) =>
      await write.all(
        writes.map(one => (one.type === 'put' ? put(one.table, one.key, one.value) : del(one.table, one.key))),
        sync,
      ),
    async close() {
      await write.end()
      await level.close().catch(error => {
        throw failed('close', error)
      })
    },
  }
}

async function openUnlocked(level: Level<string, string>, lockedMs: number, onWait: () => void): Promise<void> {
  const endMs = performance.now() + lockedMs
  for (let isFirst = true; ; isFirst = false) {
    try {
      return await level.open()
    } catch (error) {
      if (!codesOf(error).includes('LEVEL_LOCKED') || performance.now() >= endMs) throw error
      if (isFirst) onWait()
      await sleep(LOCK_POLL_MS)
    }
  }
}

type Operation = { type: 'put'; key: string; value: string } | { type: 'del'; key: string }
type Waiting = { operations: Operation[]; sync: boolean; done: PromiseWithResolvers<void> }

const del = (table: string, key: string): Operation => ({ type: 'del', key: keyOf(table, key) })
function put(table: string, key: string, value: unknown): Operation {
  if (value === null || value === undefined) throw new TypeError(`nothing cannot be stored (${table})`)
  return { type: 'put', key: keyOf(table, key), value: JSON.stringify(value) }
}

/**
 * Writes one after the other; all waiting writes form one batch. After a failed write the folder is reopened before the
 * next one: LevelDB continues after a partly written record, and then everything up to the end of that block (32 KiB),
 * synced or not, is lost at the next opening (doc/log_format.md, db/log_reader.cc).
 */
function createWriter(level: Level<string, string>, onFailure: (cause: unknown) => GodwitError) {
  const queue: Waiting[] = []
  let isTorn = false
  let isOver = false
  let opening: Promise<void> | undefined
  let turn: Promise<void> | undefined
  const open = async () => {
    await level.close()
    await level.open()
    isTorn = false
  }
  const writeOne = async (group: Waiting[]) => {
    if (isOver) throw new Error('the store is closed')
    if (isTorn) {
      opening = open()
      await opening
    }
    await level.batch(
      group.flatMap(({ operations }) => operations),
      { sync: group.some(({ sync }) => sync) },
    )
  }
  const drain = async () => {
    while (queue.length > 0) {
      const group = queue.splice(0)
      try {
        await writeOne(group)
        for (const { done } of group) done.resolve()
      } catch (cause) {
        isTorn ||= level.status === 'open'
        const error = onFailure(cause)
        for (const { done } of group) done.reject(error)
      }
    }
    turn = undefined
  }
  return {
    async all(operations: Operation[], sync: boolean): Promise<void> {
      const done = Promise.withResolvers<void>()
      queue.push({ operations, sync, done })
      turn ??= drain()
      await done.promise
    },
    /** Reads return the values on disk. */
    reopened: async () => await opening?.catch(() => {}),
    /** Runs after earlier operations; later writes do not reopen the folder. */
    async end() {
      await turn
      isOver = true
    },
  }
}

function openingError(error: unknown, path: string): GodwitError {
  const codes = codesOf(error)
  if (codes.includes('LEVEL_LOCKED')) return new GodwitError('STORE_LOCKED', `another process has ${path} open`, { cause: error })
  if (codes.includes('LEVEL_CORRUPTION'))
    return new GodwitError('STORE_FAILED', `${path} is damaged: ${deepest(error)}`, {
      cause: error,
      hint: 'move the folder and start again: the gateway rebuilds its state from the nodes; a node starts in safe mode. Keep the folder for the report',
    })
  return new GodwitError('STORE_FAILED', `${path} cannot be opened: ${deepest(error)}`, { cause: error })
}

const codesOf = (error: unknown): string[] =>
  error instanceof Error ? ['code' in error ? String(error.code) : '', ...codesOf(error.cause)] : []

const deepest = (error: unknown): string =>
  error instanceof Error ? (error.cause instanceof Error ? deepest(error.cause) : error.message) : String(error)
