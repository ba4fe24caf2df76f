// QEMUs that are locked up: each with a user of its own, no capability, seccomp; what is another VM's is closed to it;
// a live migration works that way. Asked of the kernel: /proc/PID/status of real QEMUs, and children that run with a
// VM's user.

import { execFile } from 'node:child_process'
import { chmod, readdir, readFile, stat, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { confinementProblem, DEFAULT_USERS } from '../../edge-node/vm/confine.ts'
import { MIB } from '../../wire/units.ts'
import { startCounter } from '../support/counter-guest.ts'
import { type LabSite, labMissing, openLab } from '../support/lab.ts'
import { bootGuest } from '../support/lab-guest.ts'
import { assert, suite, thrown } from '../support/suite.ts'

const test = suite('hostile/confined', { ms: 90_000 })
const skip = labMissing() ?? confinementProblem(DEFAULT_USERS)
const confined = { config: () => ({ qemu: { users: DEFAULT_USERS } }) }

type Status = { uids: string; gids: string; groups: string; capabilities: string[]; seccomp: string; noNewPrivs: string }

async function statusOf(pid: number): Promise<Status> {
  const text = await readFile(`/proc/${pid}/status`, 'utf8')
  const field = (name: string) => new RegExp(`^${name}:[ \\t]*(.*)$`, 'm').exec(text)?.[1]?.trim() ?? '?'
  const capabilities = ['CapInh', 'CapPrm', 'CapEff', 'CapAmb'].map(field)
  return {
    uids: field('Uid'),
    gids: field('Gid'),
    groups: field('Groups'),
    capabilities,
    seccomp: field('Seccomp'),
    noNewPrivs: field('NoNewPrivs'),
  }
}

const machineOf = (site: LabSite, name: string) => site.node.registry.machine(name)

/** What a process with this user can do: reads or connects, as the words say; resolves with '' or the error. */
async function as(uid: number, script: string, ...args: string[]): Promise<string> {
  const options = { uid, gid: uid, cwd: '/', env: {}, timeout: 20_000 }
  try {
    await promisify(execFile)('/bin/sh', ['-c', script, 'sh', ...args], options)
    return ''
  } catch (error) {
    return String((error as { stderr?: string }).stderr ?? error)
  }
}

test(
  'each VM has a user of its own, seccomp and no capability; neither memory, sockets nor files of another VM are open to it; the user stays over a restart',
  async () => {
    process.env['GODWIT_TOKEN'] = 'a-token-that-no-qemu-gets'
    await using lab = await openLab({ sites: [['a', confined]] })
    const site = lab.site('a')
    await startCounter(lab, 'a', { name: 'one', fillMiB: 1 })
    await startCounter(lab, 'a', { name: 'two', fillMiB: 1 })
    const [one, two] = [machineOf(site, 'one'), machineOf(site, 'two')]
    const users = await Promise.all([one, two].map(async vm => Number((await statusOf(vm.pid)).uids.split(/\s+/)[0])))
    for (const [i, vm] of [one, two].entries()) {
      const uid = users[i]!
      const four = Array(4).fill(uid).join('\t')
      assert.ok(uid >= DEFAULT_USERS.from, `user ${uid}`)
      const no = '0000000000000000'
      assert.equal(await statusOf(vm.pid), {
        uids: four,
        gids: four,
        groups: '',
        capabilities: [no, no, no, no],
        seccomp: '2',
        noNewPrivs: '1',
      })
      const environment = (await readFile(`/proc/${vm.pid}/environ`, 'latin1')).split('\0').filter(Boolean)
      assert.equal(environment.map(entry => entry.split('=')[0]).sort(), ['LANG', 'PATH', 'PWD'])
      const limit = /^Max file size +(\d+) +(\d+) +bytes/m.exec(await readFile(`/proc/${vm.pid}/limits`, 'utf8'))
      assert.equal(limit?.slice(1).map(Number), [vm.memoryBytes + 256 * MIB, vm.memoryBytes + 256 * MIB])
      const { uid: owner, mode } = await stat(vm.runDir)
      assert.equal({ owner, mode: (mode & 0o777).toString(8) }, { owner: uid, mode: '700' })
      const { uid: agent, mode: closed } = await stat(vm.dir)
      assert.equal({ agent, closed: (closed & 0o777).toString(8) }, { agent: 0, closed: '700' }, 'the folder above it is not QEMU’s')
      for (const name of await readdir(vm.runDir)) assert.is((await stat(join(vm.runDir, name))).mode & 0o777, 0o600, name)
    }
    const [mine, other] = users as [number, number]
    assert.is.not(mine, other)

    // Where the reach of a VM's user ends. The first line proves that the way of asking works.
    assert.is(await as(mine, 'head -c 1 /proc/$1/maps', String(one.pid)), '')
    assert.match(await as(mine, 'head -c 1 /proc/$1/mem', String(two.pid)), /Permission denied/)
    assert.match(await as(mine, 'head -c 1 /proc/$1/maps', String(two.pid)), /Permission denied/)
    assert.match(await as(mine, 'ls /proc/$1/fd', String(two.pid)), /Permission denied/)
    assert.match(await as(mine, 'kill -9 $1', String(two.pid)), /not permitted|Permission denied/i)
    assert.match(await as(mine, 'ls $1', two.runDir), /Permission denied/)
    assert.match(await as(mine, 'cat $1', join(one.dir, 'process.json')), /Permission denied/)
    assert.match(await as(mine, 'cat $1', join(site.dir, 'site.keys')), /Permission denied/)

    // A new agent finds them again, and a VM that is started again keeps its user.
    await site.stop()
    await site.start()
    assert.is(machineOf(site, 'one').pid, one.pid)
    await site.api('POST', '/v1/vms/two/stop', { force: true })
    await site.api('POST', '/v1/vms/two/start', {})
    assert.is((await statusOf(machineOf(site, 'two').pid)).uids.split(/\s+/)[0], String(other))
  },
  { skip },
)

test(
  'a Linux guest moves live between confined QEMUs and back, nothing of it lost',
  async () => {
    await using lab = await openLab({
      sites: [
        ['a', confined],
        ['b', confined],
      ],
    })
    using guest = await bootGuest(lab, 'a')
    for (const to of ['b', 'a']) {
      const { outcome, error } = await lab.migrate({ vm: guest.name, to })
      assert.is(outcome, 'completed', `${error?.message}\n${lab.logTail()}`)
      const { uids, seccomp, capabilities } = await statusOf(machineOf(lab.site(to), guest.name).pid)
      assert.ok(Number(uids.split(/\s+/)[0]) >= DEFAULT_USERS.from)
      assert.equal([seccomp, capabilities[2]], ['2', '0000000000000000'])
    }
    await guest.assertSound()
    assert.equal(await guest.runsAt(), ['a'])
  },
  { skip },
)

test(
  'the folders of images may be closed to the VM; a kernel that its user cannot read is refused by name, with the user and what to do',
  async () => {
    await using lab = await openLab({ sites: [['a', confined]] })
    const site = lab.site('a')
    await chmod(site.imagesDir, 0o700)
    await startCounter(lab, 'a', { fillMiB: 1 })
    const kernel = join(site.imagesDir, 'secret')
    await writeFile(kernel, 'kernel', { mode: 0o600 })
    await site.api('POST', '/v1/vms', { spec: 'name: closed\nmemory: 32MiB\naccelerator: tcg\nkernel: secret\n' })
    const error = (await thrown(() => site.api('POST', '/v1/vms/closed/start', {}))) as Error & { code: string; hint: string }
    assert.is(error.code, 'CONFIG_UNREADABLE')
    assert.match(error.message, /secret: not readable for user 7\d{4}, who runs the QEMU of closed/)
    assert.match(error.hint, /chmod o\+r/)
    await writeFile(join(site.imagesDir, 'data.img'), Buffer.alloc(1024 * 1024), { mode: 0o600 })
    const spec = 'name: writes\nmemory: 32MiB\naccelerator: tcg\ndisks: [{file: data.img, mode: writable, format: raw}]\n'
    await site.api('POST', '/v1/vms', { spec })
    // A disk comes to QEMU open, whoever may open it.
    await site.api('POST', '/v1/vms/writes/start', {})
    assert.is(machineOf(site, 'writes').alive, true)
  },
  { skip },
)

test.run()
