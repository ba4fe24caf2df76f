// Stands for rooms that have no part in who owns a VM: HTTP fronts, MQTT, policies, metrics, service addresses.
const handle = { inc: () => {}, set: () => {}, observe: () => {} }

export const startHttpServer = async () => ({ address: { host: 'none', port: 0 }, close: async () => {} })
export const statusOf = () => 500
export const createMetrics = () => ({
  counter: () => handle,
  gauge: () => handle,
  histogram: () => handle,
  sampled: () => {},
  expose: async () => '',
})
export const startMqtt = async () => undefined
export const startPolicy = () => undefined
export const startServices = async () => ({ close: async () => {}, views: () => [] })
export const startMec021 = async () => undefined
