// A store (ops/store.ts) on the disk of the host whose process opens it (disk.ts).
import type { Store } from '../../../../ops/store.ts'
import { GodwitError } from '../../../../wire/errors.ts'
import { deleted, stored, type Write } from '../disk.ts'
import { hostOf } from '../host.ts'
import { never, pause, processNow } from '../time.ts'

type Options = { onBroken?: ((error: GodwitError) => void) | undefined }

export async function openStore({ onBroken }: Options = {}): Promise<Store> {
  const process = processNow()
  const { disk } = hostOf(process)
  disk.reopened()
  const life = disk.open()
  const read = async () => {
    if (!process.alive) await never()
    await pause(process, 0.05)
  }
  const write = (writes: Write[], sync: boolean) =>
    disk.write(writes, sync, life).catch(error => {
      onBroken?.(error)
      throw error
    })
  const put = (table: string, key: string, value: unknown): Write => ({ table, key, value: stored(value) })
  return {
    async get<T>(table: string, key: string) {
      await read()
      const value = disk.get(table, key)
      return (value === undefined ? undefined : stored(value)) as T | undefined
    },
    put: (table, key, value, { sync = false } = {}) => write([put(table, key, value)], sync),
    delete: (table, key, { sync = false } = {}) => write([{ table, key, value: deleted() }], sync),
    async *entries<T>(table: string) {
      await read()
      for (const [key, value] of disk.entries(table)) yield [key, stored(value) as T] as [string, T]
    },
    batch(writes, { sync = false } = {}) {
      const all = writes.map(write => (write.type === 'put' ? put(write.table, write.key, write.value) : { ...write, value: deleted() }))
      return write(
        all.map(({ table, key, value }) => ({ table, key, value })),
        sync,
      )
    },
    async close() {
      if (!process.alive) throw new GodwitError('STORE_FAILED', 'gone')
    },
  }
}
