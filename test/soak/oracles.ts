// What must hold after each step of the soak run. Enters: a healed stage. Leaves: nothing, or an error that says which
// oracle found what.
// Always holds: no agent and no gateway is asked alone. Where a VM runs is said by its QEMUs, its beats by QEMU's own
// log, its memory by the guest's audit.
import { readdirSync, readFileSync, readlinkSync } from 'node:fs'
import { eventually } from '../../ops/deadline.ts'
import type { MigrationRecord } from '../../wire/admin.ts'
import { assert } from '../support/suite.ts'
import type { SoakVm, Stage } from './stage.ts'

/** A VM that has not come to rest so long after healing is stuck. */
const SETTLE_MS = 60_000
const BEAT_MS = 20_000
const AUDIT_MS = 90_000

export type Rest = {
  site: string
  epoch: number
  /** It came up stopped after a host crash and was booted. */
  booted: boolean
}

/** Waits until a VM is at rest at exactly one site; boots it where a host crash has left it stopped. */
export async function settle(stage: Stage, vm: SoakVm, mayBoot: boolean): Promise<Rest> {
  let seen = ''
  const look = async (): Promise<Rest | undefined> => {
    const [runs, reports, busy] = [await stage.runsAt(vm), await stage.reports(vm), await active(stage, vm)]
    seen = JSON.stringify({ runs, reports, busy })
    const [only] = reports
    if (busy.length > 0 || reports.length !== 1 || !only) return undefined
    const { site, epoch, state } = only
    if (state === 'running' && runs.length === 1 && runs[0] === site) return { site, epoch, booted: false }
    // A host that was off lists it as stopped; a QEMU that was killed leaves it failed.
    const isDown = state === 'stopped' || state === 'failed'
    return isDown && runs.length === 0 && mayBoot ? { site, epoch, booted: true } : undefined
  }
  const rest = await eventually(look, { ms: SETTLE_MS, everyMs: 200, what: `${vm.name} at rest` }).catch(error =>
    assert.unreachable(`${error.message}; QEMUs, agents, gateway: ${seen}`),
  )
  if (!rest) return assert.unreachable(`${vm.name}: ${seen}`) as never
  if (rest.booted) {
    vm.boots++
    await stage.boot(vm, rest.site)
  }
  return rest
}

async function active(stage: Stage, vm: SoakVm): Promise<string[]> {
  const { migrations } = await stage.lab.api<{ migrations: MigrationRecord[] }>('GET', '/v1/migrations')
  return migrations.filter(each => each.vm === vm.name && each.outcome === null).map(({ migrationId, state }) => `${migrationId} ${state}`)
}

/**
 * One copy at any time; the guest beats, at this site, with no beat lost or doubled. With `audit`: its memory is what
 * it wrote.
 */
export async function assertSound(stage: Stage, vm: SoakVm, { site }: Rest, { audit }: { audit: boolean }): Promise<void> {
  assert.equal(vm.eyes.overlaps(), [], `${vm.name}: two copies have executed at once`)
  await vm.serial.next('beat', BEAT_MS)
  assert.is(vm.serial.speaker(), site, `${vm.name} is heard where it runs`)
  if (audit) {
    const answer = vm.serial.next('audit-full', AUDIT_MS)
    answer.catch(() => {})
    await stage.type(vm, site, 'audit')
    const full = await answer
    assert.equal({ bad: full.bad, ever: full.ever }, { bad: 0, ever: 0 }, `${vm.name}: the guest's own audit`)
    assert.ok(full.pages > 0 && full.versions > 0, `${vm.name}: the audit covers pages that were rewritten`)
  }
  const { missing, duplicates, restarts, badLines, bad } = vm.serial.summary()
  const wanted = { missing: 0, duplicates: 0, restarts: vm.boots, badLines: 0 }
  assert.equal({ missing, duplicates, restarts, badLines }, wanted, [vm.name, ...bad, ...vm.serial.seams().slice(-6)].join('\n'))
}

/** No QEMU, and no VM folder, but those of VMs that run. */
export async function assertNothingLeft(stage: Stage, rests: Map<SoakVm, Rest>): Promise<void> {
  const look = () => {
    const left = [...qemusBelow(stage.lab.dir), ...foldersOf(stage)].sort()
    const wanted = [...rests].flatMap(([vm, { site }]) => [`${site}/${vm.name}: folder`, `${site}/${vm.name}: process`]).sort()
    return { left, wanted }
  }
  await eventually(() => (JSON.stringify(look().left) === JSON.stringify(look().wanted) ? true : undefined), {
    ms: 20_000,
    everyMs: 250,
    what: 'nothing left behind',
  }).catch(() => {
    const { left, wanted } = look()
    assert.equal(left, wanted, 'QEMU processes and VM folders')
  })
}

/** `site/vm: process` of each QEMU that works in a folder below `dir`. */
function qemusBelow(dir: string): string[] {
  return readdirSync('/proc').flatMap(pid => {
    try {
      if (!/^\d+$/.test(pid) || !readFileSync(`/proc/${pid}/cmdline`, 'utf8').includes('-pidfile')) return []
      const [site, state, vms, vm] = readlinkSync(`/proc/${pid}/cwd`)
        .slice(dir.length + 1)
        .split('/')
      return readlinkSync(`/proc/${pid}/cwd`).startsWith(`${dir}/`) && state === 'state' && vms === 'vms' ? [`${site}/${vm}: process`] : []
    } catch {
      return [] // it has ended while it was looked at
    }
  })
}

const foldersOf = ({ sites }: Stage): string[] =>
  sites.flatMap(({ name, dir }) => readdirSync(`${dir}/state/vms`).map(vm => `${name}/${vm}: folder`))
