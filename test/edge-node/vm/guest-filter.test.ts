// The network filter of QEMUs, with the real nft in a network namespace of its own: which users reach a server on the
// loopback, and which do not.
import { execFile, execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import { promisify } from 'node:util'
import { type Nft, openGuestFilter } from '../../../edge-node/vm/guest-filter.ts'
import { eventually } from '../../../ops/deadline.ts'
import { assert, suite } from '../../support/suite.ts'

const test = suite('edge-node/vm/guest-filter')
const run = promisify(execFile)

/** Why no namespace with nftables can be made here, or undefined. */
function missing(): string | undefined {
  try {
    execFileSync('unshare', ['--net', 'nft', 'list', 'ruleset'], { stdio: 'ignore', timeout: 10_000 })
    return undefined
  } catch {
    return 'nft, unshare and root are needed: node scripts/setup.js --test'
  }
}

type Namespace = AsyncDisposable & { nft: Nft; reaches(uid: number): Promise<boolean> }

/** A namespace with a server at 127.0.0.1:8099. */
async function namespace(): Promise<Namespace> {
  const serve = "require('net').createServer(s => s.on('error', () => {}).end('x')).listen(8099, '127.0.0.1', () => console.log('up'))"
  const script = `ip link set lo up && exec "${process.execPath}" -e "${serve}"`
  const server = spawn('unshare', ['--net', 'sh', '-c', script], { stdio: ['ignore', 'pipe', 'inherit'] })
  await once(server.stdout!, 'data', { signal: AbortSignal.timeout(15_000) })
  const within = ['--net', `--target=${server.pid}`]
  return {
    async nft(text) {
      const child = run('nsenter', [...within, 'nft', '-f', '-'], { timeout: 10_000 })
      child.child.stdin!.on('error', () => {}).end(text)
      await child
    },
    async reaches(uid) {
      const dial = ['setpriv', `--reuid=${uid}`, '--clear-groups', 'bash', '-c', 'exec 3<>/dev/tcp/127.0.0.1/8099']
      return await run('nsenter', [...within, ...dial], { timeout: 10_000 }).then(
        () => true,
        () => false,
      )
    },
    [Symbol.asyncDispose]: async () => void server.kill('SIGKILL'),
  }
}

test(
  'a user that needs no network reaches nothing; another does; the same user does again when its next VM has a user NIC',
  async () => {
    await using space = await namespace()
    assert.is(await space.reaches(70_005), true, 'before there are rules')
    const filter = await openGuestFilter({ nft: space.nft })
    if (typeof filter === 'string') throw new Error(filter)
    await filter.set(70_005, { isSilent: true })
    assert.equal([await space.reaches(70_005), await space.reaches(70_006)], [false, true])
    await openGuestFilter({ nft: space.nft })
    assert.is(await space.reaches(70_005), false, 'a node that starts anew leaves it as it is')
    await filter.set(70_005, { isSilent: false })
    await filter.set(70_006, { isSilent: false })
    assert.equal([await space.reaches(70_005), await space.reaches(70_006)], [true, true])
  },
  { skip: missing() },
)

test(
  'a firewall that is loaded anew, which flushes all rules, opens the network to nobody for long',
  async () => {
    await using space = await namespace()
    const filter = await openGuestFilter({ nft: space.nft, keepMs: 100 })
    if (typeof filter === 'string') throw new Error(filter)
    await filter.set(70_005, { isSilent: true })
    await space.nft('flush ruleset\n')
    await filter.set(70_006, { isSilent: true })
    assert.equal([await space.reaches(70_005), await space.reaches(70_006)], [false, false], 'the next VM that starts puts all back')
    await space.nft('flush ruleset\n')
    const shut = async () => ((await space.reaches(70_005)) ? undefined : true)
    await eventually(shut, { ms: 10_000, everyMs: 50, what: 'the rules to be back' })
    filter.close()
  },
  { skip: missing() },
)

test("a user whose QEMU has ended is not put back: it may be another node's by then", async () => {
  const scripts: string[] = []
  const filter = await openGuestFilter({ nft: async text => void scripts.push(text), keepMs: 3_600_000 })
  if (typeof filter === 'string') throw new Error(filter)
  await filter.set(70_005, { isSilent: true })
  assert.match(scripts.at(-1) ?? '', /70005/)
  filter.forget(70_005)
  await filter.set(70_006, { isSilent: true })
  assert.not.match(scripts.at(-1) ?? '', /70005/)
  filter.close()
})

test('without nft there is no filter, and the reason is said', async () => {
  const nft = () => Promise.reject(Object.assign(new Error('spawn nft ENOENT'), { code: 'ENOENT' }))
  assert.match(String(await openGuestFilter({ nft })), /nft is not installed/)
})

test.run()
