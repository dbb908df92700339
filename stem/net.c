/* Interfaces, addresses, routes: rtnetlink in the present network namespace. */
#include "stem.h"

#include <linux/if_addr.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

struct request {
	struct nlmsghdr head;
	union {
		struct ifinfomsg link;
		struct ifaddrmsg address;
		struct rtmsg route;
	};
	char attributes[128];
};

static void add_attribute(struct request *r, uint16_t type, const void *data, size_t n)
{
	struct rtattr *a = (struct rtattr *)((char *)r + NLMSG_ALIGN(r->head.nlmsg_len));
	a->rta_type = type;
	a->rta_len = (uint16_t)RTA_LENGTH(n);
	memcpy(RTA_DATA(a), data, n);
	r->head.nlmsg_len = NLMSG_ALIGN(r->head.nlmsg_len) + (uint32_t)RTA_ALIGN(a->rta_len);
}

/* Sends one request and waits for its acknowledgement. */
static int transact(struct request *r)
{
	union {
		struct nlmsghdr head;
		char space[1024];
	} answer;
	struct sockaddr_nl kernel = { .nl_family = AF_NETLINK };
	autoclose int s = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
	if (s < 0)
		return -errno;
	r->head.nlmsg_flags |= NLM_F_REQUEST | NLM_F_ACK;
	if (sendto(s, r, r->head.nlmsg_len, 0, (struct sockaddr *)&kernel, sizeof kernel) < 0)
		return -errno;
	ssize_t n = recv(s, &answer, sizeof answer, 0);
	if (n < (ssize_t)NLMSG_LENGTH(sizeof(int)) || answer.head.nlmsg_type != NLMSG_ERROR)
		return n < 0 ? -errno : -EPROTO;
	return ((struct nlmsgerr *)NLMSG_DATA(&answer.head))->error;
}

static int interface_index(const char *name)
{
	struct ifreq r = { 0 };
	autoclose int s = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (strlen(name) >= sizeof r.ifr_name)
		return -ENODEV;
	strcpy(r.ifr_name, name);
	return s < 0 || ioctl(s, SIOCGIFINDEX, &r) < 0 ? -errno : r.ifr_ifindex;
}

int link_up(const char *name, uint32_t mtu)
{
	int index = interface_index(name);
	struct request r = { .head = { .nlmsg_len = NLMSG_LENGTH(sizeof r.link), .nlmsg_type = RTM_NEWLINK },
			     .link = { .ifi_index = index, .ifi_flags = IFF_UP, .ifi_change = IFF_UP } };
	if (index < 0)
		return index;
	if (mtu)
		add_attribute(&r, IFLA_MTU, &mtu, sizeof mtu);
	return transact(&r);
}

int op_link(struct child *c, struct op *op)
{
	(void)c;
	return link_up(op->args[0].s, (uint32_t)op->args[1].i);
}

int op_address(struct child *c, struct op *op)
{
	(void)c;
	struct arg *a = op->args;
	int index = interface_index(a[0].s);
	if (index < 0)
		return index;
	if ((a[1].n != 4 && a[1].n != 16) || a[2].i > a[1].n * 8)
		return -EINVAL;
	struct request r = { .head = { .nlmsg_len = NLMSG_LENGTH(sizeof r.address), .nlmsg_type = RTM_NEWADDR,
				       .nlmsg_flags = NLM_F_CREATE | NLM_F_REPLACE },
			     .address = { .ifa_family = a[1].n == 4 ? AF_INET : AF_INET6, .ifa_prefixlen = (uint8_t)a[2].i,
					  .ifa_flags = a[1].n == 4 ? 0 : IFA_F_NODAD, .ifa_index = (uint32_t)index } };
	add_attribute(&r, IFA_LOCAL, a[1].s, a[1].n);
	add_attribute(&r, IFA_ADDRESS, a[1].s, a[1].n);
	if (a[1].n == 4 && a[2].i < 31) {
		uint32_t broadcast;
		memcpy(&broadcast, a[1].s, 4);
		broadcast |= __builtin_bswap32(0xffffffffu >> a[2].i);
		add_attribute(&r, IFA_BROADCAST, &broadcast, 4);
	}
	return transact(&r);
}

int op_route(struct child *c, struct op *op)
{
	(void)c;
	struct arg *a = op->args;
	int index = interface_index(a[1].s);
	if (index < 0)
		return index;
	if (a[0].n != 4 && a[0].n != 16)
		return -EINVAL;
	struct request r = { .head = { .nlmsg_len = NLMSG_LENGTH(sizeof r.route), .nlmsg_type = RTM_NEWROUTE,
				       .nlmsg_flags = NLM_F_CREATE | NLM_F_REPLACE },
			     .route = { .rtm_family = a[0].n == 4 ? AF_INET : AF_INET6, .rtm_table = RT_TABLE_MAIN,
					.rtm_protocol = RTPROT_BOOT, .rtm_scope = RT_SCOPE_UNIVERSE, .rtm_type = RTN_UNICAST,
					.rtm_flags = RTNH_F_ONLINK } };
	add_attribute(&r, RTA_GATEWAY, a[0].s, a[0].n);
	add_attribute(&r, RTA_OIF, &index, sizeof index);
	return transact(&r);
}
