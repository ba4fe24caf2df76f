// ops/store.ts in the simulation: a store on the disk of the host whose process opens it (disk.ts).
import type { Store } from '../../../../ops/store.ts'
import { GodwitError } from '../../../../wire/errors.ts'
import { deleted, stored, type Write } from '../disk.ts'
import { hostOf } from '../host.ts'
import { never, pause, processNow } from '../time.ts'

export async function openStore(): Promise<Store> {
  const process = processNow()
  const { disk } = hostOf(process)
  disk.reopened()
  const life = disk.open()
  const read = async () => {
    if (!process.alive) await never()
    await pause(process, 0.05)
  }
  const put = (table: string, key: string, value: unknown): Write => ({ table, key, value: stored(value) })
  return {
    async get<T>(table: string, key: string) {
      await read()
      const value = disk.get(table, key)
      return (value === undefined ? undefined : stored(value)) as T | undefined
    },
    put: (table, key, value, { sync = false } = {}) => disk.write([put(table, key, value)], sync, life),
    delete: (table, key, { sync = false } = {}) => disk.write([{ table, key, value: deleted() }], sync, life),
    async *entries<T>(table: string) {
      await read()
      for (const [key, value] of disk.entries(table)) yield [key, stored(value) as T] as [string, T]
    },
    batch(writes, { sync = false } = {}) {
      const all = writes.map(write => (write.type === 'put' ? put(write.table, write.key, write.value) : { ...write, value: deleted() }))
      return disk.write(
        all.map(({ table, key, value }) => ({ table, key, value })),
        sync,
        life,
      )
    },
    async close() {
      if (!process.alive) throw new GodwitError('STORE_FAILED', 'gone')
    },
  }
}
