// Durable state on this host: tables of JSON values in one LevelDB folder (the one importer of `level`).
// Enters: table, key, JSON value (not null). Leaves: the same value, also after a crash when it was written with `sync`.
// Always holds: one process per folder (STORE_LOCKED); a `sync` write has reached the disk when its promise resolves, so a message that
// depends on it may be sent, and no failure of another write takes it back; any other failure is STORE_FAILED (the write may show up or not), and a
// damaged folder is never repaired in silence.
import { mkdir } from 'node:fs/promises'
import { Level } from 'level'
import { GodwitError } from '../wire/errors.ts'
import type { Log } from '../wire/log.ts'

export type WriteOptions = { sync?: boolean }
export type StoreWrite = { type: 'put'; table: string; key: string; value: unknown } | { type: 'delete'; table: string; key: string }

export type Store = {
  get<T>(table: string, key: string): Promise<T | undefined>
  put(table: string, key: string, value: unknown, options?: WriteOptions): Promise<void>
  delete(table: string, key: string, options?: WriteOptions): Promise<void>
  /** All of a table in order of its keys, as it was when the iteration began. */
  entries<T>(table: string): AsyncIterable<[key: string, value: T]>
  /** All or nothing. */
  batch(writes: StoreWrite[], options?: WriteOptions): Promise<void>
  close(): Promise<void>
}

// A table's keys lie between `table:` and `table;` (the next character), so no table's range meets another's.
const TABLE = /^[a-z0-9-]{1,32}$/
const keyOf = (table: string, key: string): string => {
  if (!TABLE.test(table)) throw new TypeError(`'${table}' is no table name`)
  if (key.length === 0 || key.length > 512) throw new TypeError(`a key of ${key.length} characters`)
  return `${table}:${key}`
}

/**
 * Opens (and creates) the folder. `onBroken`: a write has failed, and what of it is on the disk is not known yet. STORE_LOCKED when another process has it;
 * STORE_FAILED, with what to do, when it cannot be read.
 */
export async function openStore(
  path: string,
  { log, onBroken }: { log?: Log; onBroken?: ((error: GodwitError) => void) | undefined } = {},
): Promise<Store> {
  let level: Level<string, string>
  try {
    await mkdir(path, { recursive: true, mode: 0o700 })
    level = new Level<string, string>(path, { valueEncoding: 'utf8' })
    await level.open()
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

type Operation = { type: 'put'; key: string; value: string } | { type: 'del'; key: string }
type Waiting = { operations: Operation[]; sync: boolean; done: PromiseWithResolvers<void> }

const del = (table: string, key: string): Operation => ({ type: 'del', key: keyOf(table, key) })
function put(table: string, key: string, value: unknown): Operation {
  if (value === null || value === undefined) throw new TypeError(`nothing cannot be stored (${table})`)
  return { type: 'put', key: keyOf(table, key), value: JSON.stringify(value) }
}

/**
 * Writes in turn, all that wait as one batch. After a write that failed the folder is opened anew before the next: LevelDB goes on behind a record that was
 * written in part, and everything up to the end of that block (32 KiB), synced or not, is lost at the next opening (doc/log_format.md, db/log_reader.cc).
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
    /** What is read is what is on the disk. */
    reopened: async () => await opening?.catch(() => {}),
    /** After what was asked before; a later write opens nothing any more. */
    async end() {
      await turn
      isOver = true
    },
  }
}

function openingError(error: unknown, path: string): GodwitError {
  const codes = codesOf(error)
  if (codes.includes('LEVEL_LOCKED')) return new GodwitError('STORE_LOCKED', `${path} is open in another process`, { cause: error })
  if (codes.includes('LEVEL_CORRUPTION'))
    return new GodwitError('STORE_FAILED', `${path} is damaged: ${deepest(error)}`, {
      cause: error,
      hint: 'move the folder away and start again: the gateway rebuilds its state from the nodes; a node starts in safe mode. Keep the folder for the report',
    })
  return new GodwitError('STORE_FAILED', `${path} cannot be opened: ${deepest(error)}`, { cause: error })
}

const codesOf = (error: unknown): string[] =>
  error instanceof Error ? ['code' in error ? String(error.code) : '', ...codesOf(error.cause)] : []

const deepest = (error: unknown): string =>
  error instanceof Error ? (error.cause instanceof Error ? deepest(error.cause) : error.message) : String(error)
