// The source decides whether its VM leaves: agents as processes of their own, a real guest, a gateway that asks for
// what nobody signed.
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { run } from '../../cli/run.ts'
import { encodeCommandKey, generateCommandKey } from '../../crypto/command-keys.ts'
import type { MigrationRecord } from '../../wire/admin.ts'
import { EXIT } from '../../wire/errors.ts'
import { recordingIo } from '../cli/recording-io.ts'
import { type Lab, labMissing, openLab } from '../support/lab.ts'
import { bootGuest } from '../support/lab-guest.ts'
import { logTailOf } from '../support/lab-site.ts'
import { assert, codeOf, suite } from '../support/suite.ts'

const test = suite('e2e/release', { ms: 120_000 })
const skip = labMissing()

const key = generateCommandKey('noc-1')
const commandKeys = { 'noc-1': { publicKey: key.publicKey, actions: ['start', 'prestage'] } }
const release = [
  { vms: ['vm-*'], to: ['b'] },
  { vms: ['free-*'], to: ['b'], unsigned: true },
]

async function godwit(lab: Lab, words: string[]) {
  const io = recordingIo({ env: { GODWIT_GATEWAY: lab.target.url ?? '', GODWIT_TOKEN: lab.target.token ?? '' } })
  return { code: await run(words, io), stdout: io.stdout, stderr: io.stderr }
}

const statesAt = async (lab: Lab, site: string): Promise<string[]> =>
  (await lab.site(site).api<{ vms: { name: string; state: string }[] }>('GET', '/v1/vms')).vms.map(({ name, state }) => `${name} ${state}`)

test(
  'a gateway gets a VM moved only as a commander of the source has signed it, and only where the source lets it go',
  async () => {
    const config = { release, commandKeys }
    await using lab = await openLab({ engine: 'quic', sites: [['a', { isProcess: true, config }], ['b', { isProcess: true }], 'evil'] })
    using guest = await bootGuest(lab, 'a')
    const codeTo = async (to: string, command?: object): Promise<string | undefined> => {
      const request = { vm: 'vm-1', to, ...(command ? { command } : {}) } as Parameters<Lab['migrate']>[0]
      return (await lab.migrate(request)).error?.code
    }
    assert.is(await codeTo('evil'), 'RELEASE_DENIED')
    assert.is(await codeTo('b'), 'COMMAND_REQUIRED')
    assert.is(await codeOf(() => lab.api('POST', '/v1/prestages', { vm: 'vm-1', to: 'evil' })), 'RELEASE_DENIED')
    assert.equal([await statesAt(lab, 'a'), await statesAt(lab, 'b')], [['vm-1 running'], []])
    await guest.observer.next('beat', 5_000)

    const file = join(lab.dir, 'noc-1.key')
    await writeFile(file, encodeCommandKey(key), { mode: 0o600 })
    const moved = await godwit(lab, ['migrate', 'vm-1', '--to', 'b', '--key', file, '--json'])
    assert.is(moved.code, EXIT.ok, `${moved.stdout}${moved.stderr}`)
    assert.equal([await statesAt(lab, 'a'), await statesAt(lab, 'b')], [[], ['vm-1 running']])
    await guest.observer.next('beat', 5_000)
    assert.match(await logTailOf(join(lab.dir, 'a')), /unauthorized_move/)

    // b has neither rules nor keys: the way back needs nothing.
    const back: MigrationRecord = await lab.migrate({ vm: 'vm-1', to: 'a' })
    assert.is(back.outcome, 'completed')
    const other = join(lab.dir, 'other.key')
    await writeFile(other, encodeCommandKey(generateCommandKey('noc-1')), { mode: 0o600 })
    const forged = await godwit(lab, ['migrate', 'vm-1', '--to', 'b', '--key', other])
    assert.equal([forged.code, /COMMAND_FORGED/.test(forged.stderr)], [EXIT.denied, true])
    assert.equal(await statesAt(lab, 'a'), ['vm-1 running'])
  },
  { skip, ms: 120_000 },
)

test.run()
