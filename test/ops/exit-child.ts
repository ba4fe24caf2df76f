// A process that ends while its native parts are at work; exit.test.ts looks at how it ends.
//   level WAY FOLDER   while LevelDB writes and reads, in that folder
//   ENGINE WAY         while streams of quic, tls or webtransport carry data both ways
// WAY: `close` closes them meanwhile and lets the process end by itself; `exit` calls process.exit(3); `throw` throws.
import { sleep } from '../../ops/deadline.ts'
import { openStore } from '../../ops/store.ts'
import { createEngines } from '../../transport/select.ts'
import type { Connection, Stream } from '../../transport/types.ts'

const [part = '', way = '', folder = ''] = process.argv.slice(2)
const quietly = (work: Promise<unknown>) => void work.catch(() => {})

/** Gives what closes it. */
async function level(): Promise<() => Promise<void>> {
  const store = await openStore(folder)
  const work = async (name: number) => {
    for (let n = 0; ; n++) {
      await store.put('t', `${name}-${n % 50}`, { n, text: 'x'.repeat(5000) }, { sync: n % 3 === 0 })
      for await (const _ of store.entries('t')) if (n % 2 === 0) break
    }
  }
  for (let i = 0; i < 6; i++) quietly(work(i))
  return () => store.close()
}

const BYTES = new Uint8Array(64 * 1024).fill(7)

async function pump(stream: Stream): Promise<void> {
  const write = async () => {
    for (;;) await stream.write(BYTES)
  }
  quietly(write())
  while ((await stream.read()) !== null);
}

async function answer(connection: Connection | null): Promise<void> {
  for (let stream = await connection?.acceptStream(); stream; stream = await connection?.acceptStream()) quietly(pump(stream))
}

async function transport(): Promise<() => Promise<void>> {
  const engine = createEngines().find(({ name }) => name === part)!
  const listener = await engine.listen({ host: '127.0.0.1', port: 0 })
  quietly(listener.accept().then(answer))
  const connection = await engine.connect({ host: '127.0.0.1', port: listener.address.port })
  for (let i = 0; i < 6; i++) quietly(pump(await connection.openStream()))
  return async () => void (await Promise.all([connection.close('over'), listener.close()]))
}

const close = await (part === 'level' ? level() : transport())
await sleep(100 + Math.random() * 100)
console.log('ending')
if (way === 'exit') process.exit(3)
if (way === 'throw') throw new Error('nobody catches this')
await close()
