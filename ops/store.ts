// Durable state on this host: tables of JSON values in one LevelDB folder (the one importer of `level`).
// Enters: table, key, JSON value (not null). Leaves: the same value, also after a crash when it was written with `sync`.
// Always holds: one process per folder (STORE_LOCKED); a `sync` write has reached the disk when its promise resolves, so a message that
// depends on it may be sent; any other failure is STORE_FAILED, and a damaged folder is never repaired in silence.
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

/** Opens (and creates) the folder. `onBroken`: a write has failed, and so will all others until the store is opened anew. STORE_LOCKED when another process has it; STORE_FAILED, with what to do, when it cannot be read. */
export async function openStore(
  path: string,
  { log, onBroken }: { log?: Log; onBroken?: ((error: GodwitError) => void) | undefined } = {},
): Promise<Store> {
  let level: Level<string, unknown>
  try {
    await mkdir(path, { recursive: true, mode: 0o700 })
    level = new Level<string, unknown>(path, { valueEncoding: 'json' })
    await level.open()
  } catch (error) {
    throw openingError(error, path)
  }
  log?.debug('store open', { path })
  const failed = (what: string) => (cause: unknown) => {
    throw new GodwitError('STORE_FAILED', `${path}: ${what}: ${deepest(cause)}`, { cause })
  }
  // LevelDB takes no more writes after one that has failed: what the log file holds is known only when it is opened again.
  const broken = (what: string) => (cause: unknown) => {
    try {
      failed(what)(cause)
    } catch (error) {
      onBroken?.(error as GodwitError)
      throw error
    }
  }
  return {
    get: async <T>(table: string, key: string) => (await level.get(keyOf(table, key)).catch(failed(`read ${table}`))) as T | undefined,
    put: async (table, key, value, { sync = false } = {}) => {
      await level.put(keyOf(table, key), value, { sync }).catch(broken(`write ${table}`))
    },
    delete: async (table, key, { sync = false } = {}) => {
      await level.del(keyOf(table, key), { sync }).catch(broken(`delete from ${table}`))
    },
    async *entries<T>(table: string) {
      const first = keyOf(table, ' ').slice(0, -1)
      try {
        for await (const [key, value] of level.iterator({ gte: first, lt: `${table};` })) yield [key.slice(first.length), value as T]
      } catch (error) {
        failed(`list ${table}`)(error)
      }
    },
    async batch(writes, { sync = false } = {}) {
      const operations = writes.map(write =>
        write.type === 'put'
          ? { type: 'put' as const, key: keyOf(write.table, write.key), value: write.value }
          : { type: 'del' as const, key: keyOf(write.table, write.key) },
      )
      await level.batch(operations, { sync }).catch(broken('write'))
    },
    close: async () => {
      await level.close().catch(failed('close'))
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
