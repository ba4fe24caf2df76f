// The `godwit` command as a process of its own against a live system: what it prints where, and how it ends.

import { spawn } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { eventually, within } from '../../ops/deadline.ts'
import { Report } from '../../wire/control.ts'
import { EXIT } from '../../wire/errors.ts'
import { FeedEvent } from '../../wire/events.ts'
import { MIB } from '../../wire/units.ts'
import { labMissing, openLab, TOKEN } from '../support/lab.ts'
import { bootGuest } from '../support/lab-guest.ts'
import { shared } from '../support/shared.ts'
import { assert, suite } from '../support/suite.ts'

const MAIN = fileURLToPath(new URL('../../cli/main.ts', import.meta.url))
const test = suite('e2e/cli', { ms: 60_000 })
const skip = labMissing()
const VM = 'vm-1'

const scene = shared(async () => {
  const lab = await openLab()
  try {
    const guest = await bootGuest(lab, 'a', { name: VM, seed: 71, dirtyBytesPerSecond: 8 * MIB })
    const dispose = async () => {
      guest[Symbol.dispose]()
      await lab[Symbol.asyncDispose]()
    }
    return { lab, guest, [Symbol.asyncDispose]: dispose }
  } catch (error) {
    await lab[Symbol.asyncDispose]()
    throw error
  }
})

type Ended = { code: number | null; stdout: string; stderr: string }

/** A godwit command; `signal` says something to it while it runs. */
function godwit(words: string[], env: Record<string, string> = {}) {
  const child = spawn(process.execPath, [MAIN, ...words], {
    stdio: ['ignore', 'pipe', 'pipe'],
    env: { ...process.env, GODWIT_HOME: '/nonexistent/godwit', ...env },
  })
  const said = { stdout: '', stderr: '' }
  for (const name of ['stdout', 'stderr'] as const)
    child[name].setEncoding('utf8').on('data', text => {
      said[name] += text
    })
  const ended = new Promise<Ended>((resolve, reject) => {
    child.once('error', reject)
    child.once('close', code => resolve({ code, ...said }))
  })
  return { said, interrupt: () => child.kill('SIGINT'), ended: () => within(ended, { ms: 45_000, what: `godwit ${words.join(' ')}` }) }
}

/** The same against the lab's gateway. */
async function atLab(...words: string[]) {
  const { lab } = await scene()
  return godwit([...words, '--gateway', lab.target.url!, '--token-file', lab.target.tokenFile])
}

/** The place and the other place. */
async function places(): Promise<[from: string, to: string]> {
  const { guest } = await scene()
  const [from] = await guest.runsAt()
  return [from!, from === 'a' ? 'b' : 'a']
}

const errorOf = ({ stdout, stderr }: Ended): string => JSON.parse(stdout === '' ? stderr : stdout).error.code

test(
  'migrate --json prints one object on stdout, the report with its units in the names, and nothing else',
  async () => {
    const { guest } = await scene()
    const [from, to] = await places()
    const { code, stdout, stderr } = await (
      await atLab('migrate', VM, '--to', to, '--downtime', '200ms', '--streams', '2', '--json')
    ).ended()
    assert.is(code, EXIT.ok, stderr)
    const report = Report.parse(JSON.parse(stdout))
    assert.equal(
      { vm: report.vm, source: report.source, target: report.target, outcome: report.outcome, streams: report.streams },
      { vm: VM, source: from, target: to, outcome: 'completed', streams: 2 },
    )
    const named = /(Ms|At|Bytes|^bytes[A-Z]\w+|^pages[A-Z]\w+|^rounds|^streams|^reconnects|^changeOvers|^ratio|Ratio|PerSecond)$/
    const numbers = (value: object): string[] =>
      Object.entries(value).flatMap(([key, inner]) =>
        typeof inner === 'number' ? [key] : inner && typeof inner === 'object' && !Array.isArray(inner) ? numbers(inner) : [],
      )
    assert.equal(
      numbers(report).filter(key => !named.test(key)),
      [],
      'numbers whose name bears no unit',
    )
    assert.is(report['downtimeAskedMs'], 200)
    assert.not.match(stderr, /\{|\}/, 'progress and notes are no JSON')
    await guest.assertSound()
  },
  { skip },
)

test(
  'migrate without --json shows the way on stderr and the report on stdout',
  async () => {
    const [, to] = await places()
    const { code, stdout, stderr } = await (await atLab('migrate', VM, '--to', to, '--method', 'cold')).ended()
    assert.is(code, EXIT.ok, stderr)
    for (const word of ['cold', 'downtime', 'wire']) assert.match(stdout.toLowerCase(), word)
    assert.match(stderr, /migration [0-9a-f]{32}/)
  },
  { skip },
)

test(
  'status --watch --json shows a migration as it happens: begun, its progress, the new home of the VM, ended',
  async () => {
    const [from, to] = await places()
    const watch = await atLab('status', '--watch', '--json')
    const lines = () =>
      watch.said.stdout
        .split('\n')
        .filter(line => line !== '')
        .map(line => JSON.parse(line) as { event: string })
    const seen = (name: string) => lines().find(({ event }) => event === name)
    await eventually(async () => seen('status') ?? undefined, { ms: 20_000, what: `the state: ${watch.said.stderr}` })
    const { code, stderr } = await (await atLab('migrate', VM, '--to', to)).ended()
    assert.is(code, EXIT.ok, stderr)
    await eventually(async () => (seen('migration-ended') && seen('vm-home') ? true : undefined), { ms: 20_000, what: 'its end' })
    watch.interrupt()
    assert.is((await watch.ended()).code, EXIT.ok)
    const events = lines()
      .filter(({ event }) => event !== 'status')
      .map(event => FeedEvent.parse(event))
    const names = events.map(({ event }) => event)
    const at = (name: string) => names.indexOf(name as (typeof names)[number])
    assert.ok(at('migration-begun') < at('migration-progress') && at('migration-progress') < at('migration-ended'), names.join(' '))
    const progress = events.flatMap(event => (event.event === 'migration-progress' ? [event.at] : []))
    for (const [i, ms] of progress.entries()) assert.ok(i === 0 || ms - progress[i - 1]! >= 990, 'at most one a second')
    const home = events.find(event => event.event === 'vm-home')
    assert.equal([home?.vm, home?.from, home?.to], [VM, from, to])
  },
  { skip },
)

test(
  'what is refused, denied, unreachable or mistyped ends with its own exit code and error, and moves nothing',
  async () => {
    const { lab, guest } = await scene()
    const [from, to] = await places()
    const cases: [what: string, expected: number, error: string, child: ReturnType<typeof godwit>][] = [
      ['an unknown VM', EXIT.refused, 'VM_UNKNOWN', await atLab('migrate', 'nobody', '--to', to, '--json')],
      ['an unknown site', EXIT.refused, 'SITE_UNKNOWN', await atLab('migrate', VM, '--to', 'nowhere', '--json')],
      ['the same site', EXIT.refused, 'SITE_SAME', await atLab('migrate', VM, '--to', from, '--json')],
      ['a wrong option', EXIT.usage, 'USAGE', await atLab('migrate', VM, '--too', to, '--json')],
      [
        'no gateway there',
        EXIT.unreachable,
        'GATEWAY_UNREACHABLE',
        godwit(['migrate', VM, '--to', to, '--json', '--gateway', 'http://127.0.0.1:9'], { GODWIT_TOKEN: TOKEN }),
      ],
      [
        'a wrong token',
        EXIT.denied,
        'TOKEN_INVALID',
        godwit(['migrate', VM, '--to', to, '--json', '--gateway', lab.target.url!], { GODWIT_TOKEN: 'wrong' }),
      ],
    ]
    for (const [what, expected, error, child] of cases) {
      const ended = await child.ended()
      assert.equal({ what, code: ended.code, error: errorOf(ended) }, { what, code: expected, error })
    }
    assert.equal(await guest.runsAt(), [from])
  },
  { skip },
)

test(
  'Ctrl-C cancels: the command waits for the outcome, ends with 7, and the VM runs where it was',
  async () => {
    const { lab, guest } = await scene()
    const [from, to] = await places()
    lab.valve.hold(index => index >= 2, { afterBytes: 8 * MIB })
    const command = await atLab('migrate', VM, '--to', to)
    await within(lab.valve.reached(), { ms: 20_000, what: 'the first pages' })
    await eventually(() => /migration [0-9a-f]{32}/.test(command.said.stderr) || undefined, { ms: 10_000, what: 'the command follows' })
    command.interrupt()
    const { code, stderr } = await command.ended()
    lab.valve.open()
    assert.is(code, EXIT.cancelled, stderr)
    assert.match(stderr, 'MIGRATION_CANCELLED')
    assert.equal(await guest.runsAt(), [from])
    await guest.assertSound()
  },
  { skip },
)

test(
  "a migration that fails on the way ends with 4 and the other site's reason",
  async () => {
    const { lab, guest } = await scene()
    const [from, to] = await places()
    lab.valve.hold(index => index >= 2, { afterBytes: 8 * MIB })
    const command = await atLab('migrate', VM, '--to', to, '--json')
    await within(lab.valve.reached(), { ms: 20_000, what: 'the first pages' })
    process.kill(lab.site(to).node.registry.get(VM).pid!, 'SIGKILL')
    const ended = await command.ended()
    lab.valve.open()
    assert.equal({ code: ended.code, error: errorOf(ended) }, { code: EXIT.failed, error: 'QEMU_EXITED' })
    assert.equal(await guest.runsAt(), [from])
  },
  { skip },
)

test(
  'status shows both sites, where the VM is, and what has happened',
  async () => {
    const [from] = await places()
    const { code, stdout } = await (await atLab('status', '--json')).ended()
    assert.is(code, EXIT.ok)
    const status = JSON.parse(stdout)
    assert.equal(
      status.sites.map(({ site, online }: { site: string; online: boolean }) => [site, online]),
      [
        ['a', true],
        ['b', true],
      ],
    )
    assert.equal(
      status.vms.map(({ name, site, state }: Record<string, string>) => ({ name, site, state })),
      [{ name: VM, site: from, state: 'running' }],
    )
    assert.equal(
      status.migrations.map(({ outcome }: { outcome: string }) => outcome),
      ['failed', 'cancelled', 'completed', 'completed', 'completed'],
    )
  },
  { skip },
)

test('the lab ends', () => scene.dispose(), { skip })

test.run()
