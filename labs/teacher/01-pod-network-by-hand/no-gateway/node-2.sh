set -e
ip link add cni0 type bridge
ip address add 10.244.2.1/24 dev cni0
ip link set cni0 up

ip netns add green
ip link add veth-green type veth peer name eth0 netns green
ip link set veth-green master cni0 up
ip -n green link set lo up
ip -n green address add 10.244.2.2/24 dev eth0
ip -n green link set eth0 up
ip -n green route add default via 10.244.2.1

ip netns add gold
ip link add veth-gold type veth peer name eth0 netns gold
ip link set veth-gold master cni0 up
ip -n gold link set lo up
ip -n gold address add 10.244.2.3/24 dev eth0
ip -n gold link set eth0 up
ip -n gold route add default via 10.244.2.1

ip route add 10.244.1.0/24 via 192.168.100.11
