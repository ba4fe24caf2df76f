// godwit sim link as an operator runs it.
import { execFileSync, spawn } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { linkOf } from '../../cli/sim/link-wish.ts'
import { eventually, sleep } from '../../ops/deadline.ts'
import { namespacesMissing } from '../../sim-network/namespaces.ts'
import { profiles } from '../../sim-network/profiles.ts'
import { assert, codeOf, suite } from '../support/suite.ts'

const test = suite('cli: sim link')
const MAIN = fileURLToPath(new URL('../../cli/main.ts', import.meta.url))
const skip = namespacesMissing()

test('words become the link that they name', async () => {
  const { up, down } = await linkOf({ rate: '20/100', rtt: 40, loss: '0.5%', jitter: 3, blackout: '4s/1s/20s' })
  assert.equal([up.rate, down.rate], [{ bitsPerSecond: 20e6 }, { bitsPerSecond: 100e6 }])
  assert.equal([up.delayMs, up.jitterMs, up.loss, down.queueBytes], [20, 3, { ratio: 0.005 }, 500_000])
  assert.equal(up.blackouts, [{ startMs: 4000, durationMs: 1000, everyMs: 20_000 }])
  assert.equal((await linkOf({ profile: 'dsl' })).up, profiles.dsl.up)
  const changed = await linkOf({ profile: 'dsl', rtt: 100 })
  assert.equal([changed.up.rate, changed.up.delayMs], [profiles.dsl.up.rate, 50])
})

test('words that make no link are refused with what was expected', async () => {
  for (const wish of [
    {},
    { profile: 'dls' },
    { rate: 'fast' },
    { rate: '1/2/3' },
    { rate: '10', loss: 'much' },
    { rate: '10', blackout: '4' },
  ])
    assert.is(await codeOf(() => linkOf(wish)), 'USAGE', JSON.stringify(wish))
  assert.is(await codeOf(() => linkOf({ rate: '10', jitter: 5 })), 'USAGE')
})

test(
  'it lays the link between namespaces of its own, says what passed, and takes all away',
  async () => {
    const [a, b] = [`gwc-${process.pid}-a`, `gwc-${process.pid}-b`]
    const words = ['sim', 'link', '--rate', '50', '--rtt', '20ms', '--create', '--between', a, b, '--json']
    const child = spawn(process.execPath, [MAIN, ...words], { stdio: ['ignore', 'pipe', 'pipe'] })
    let [out, said] = ['', '']
    child.stdout.setEncoding('utf8').on('data', text => {
      out += text
    })
    child.stderr.setEncoding('utf8').on('data', text => {
      said += text
    })
    const ended = new Promise<number | null>(resolve => child.once('close', resolve))
    try {
      await eventually(() => said.includes('the link is up') || undefined, { ms: 20_000, what: 'the link' })
      execFileSync('ip', ['netns', 'exec', a, 'bash', '-c', 'echo x >/dev/udp/10.77.0.2/9'])
      await sleep(200)
    } finally {
      child.kill('SIGTERM')
    }
    assert.is(await ended, 0)
    const { up, down } = JSON.parse(out) as Record<'up' | 'down', { link: { enteredPackets: number; deliveredPackets: number } }>
    assert.equal([up.link.enteredPackets, up.link.deliveredPackets], [1, 1])
    assert.ok(down.link.enteredPackets <= 1)
    assert.not.ok(execFileSync('ip', ['netns', 'list'], { encoding: 'utf8' }).includes(a))
  },
  { skip },
)

test.run()
